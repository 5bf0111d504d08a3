use tokio::io::AsyncWriteExt;

use super::answer::{GivenBack, Said, clamd_said, edition_said, icap_said};
use super::*;
use crate::base::Clock;

#[test]
fn scanners_are_named() {
    let icap = |host: &str, port| Scanner::Icap { host: host.to_owned(), port, service: "avscan".to_owned() };
    for (text, scanner) in [
        ("icap://127.0.0.1:1345/avscan", Some(icap("127.0.0.1", 1345))),
        ("icap://[::1]/avscan", Some(icap("::1", 1344))),
        ("icap://scan.lan/avscan", Some(icap("scan.lan", 1344))),
        ("icap://127.0.0.1:1344", None),
        ("icap://127.0.0.1:x/avscan", None),
        ("icap://a b/avscan", None),
        ("clamd://nas.lan", Some(Scanner::Clamd { host: "nas.lan".to_owned(), port: 3310 })),
        ("clamd:/run/clamav/clamd.ctl", Some(Scanner::ClamdSocket("/run/clamav/clamd.ctl".into()))),
        ("clamd:///run/clamav/clamd.ctl", Some(Scanner::ClamdSocket("/run/clamav/clamd.ctl".into()))),
        ("clamd:x", None),
        ("http://127.0.0.1", None),
    ] {
        assert_eq!(Scanner::parse(text).ok(), scanner, "{text}");
        if let Some(scanner) = scanner {
            assert_eq!(
                Scanner::parse(&scanner.to_string()),
                Ok(scanner.clone()).map_err(|(): ()| String::new()),
                "{scanner}"
            );
        }
    }
}

fn verdict(said: Option<Result<Scanned, ScanFailed>>) -> String {
    match said {
        None => "more".to_owned(),
        Some(Ok(Scanned::Clean)) => "clean".to_owned(),
        Some(Ok(Scanned::Infected(name))) => format!("infected: {name}"),
        Some(Err(failed)) => failed.to_string(),
    }
}

#[test]
fn what_a_scanner_says_is_understood() {
    for (answer, says) in [
        (&b"stream: OK\0"[..], "clean"),
        (b"stream: Win.Test.EICAR_HDB-1 FOUND\0", "infected: Win.Test.EICAR_HDB-1"),
        (b"INSTREAM size limit exceeded. ERROR\0", "the scanner says: INSTREAM size limit exceeded. ERROR"),
        (b"stream: O", "more"),
        (b"", "more"),
    ] {
        assert_eq!(verdict(clamd_said(answer, false)), says);
    }
    assert_eq!(verdict(clamd_said(b"stream: OK", true)), "clean");
    let page = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n";
    let same = format!("HTTP/1.0 200 OK\r\n{MARK}: 1\r\n\r\n");
    for (answer, says) in [
        ("ICAP/1.0 204 Unmodified\r\nServer: C-ICAP\r\n\r\n".to_owned(), "clean"),
        (
            format!("ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Resolution=2; Threat=Eicar-Test;\r\n\r\n{page}"),
            "infected: Eicar-Test",
        ),
        ("ICAP/1.0 200 OK\r\nx-virus-id: Eicar\r\n\r\n".to_owned(), "infected: Eicar"),
        (format!("ICAP/1.0 200 OK\r\nISTag: x\r\n\r\n{page}"), "infected: blocked"),
        (format!("ICAP/1.0 200 OK\r\nISTag: x\r\n\r\n{same}"), "as it was"),
        ("ICAP/1.0 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\n".to_owned(), "infected: blocked"),
        ("ICAP/1.0 200 OK\r\nISTag: x\r\n\r\nHTTP/1.1 2".to_owned(), "more"),
        ("ICAP/1.0 100 Continue\r\n\r\nICAP/1.0 204 x\r\n\r\n".to_owned(), "clean"),
        ("ICAP/1.0 100 Continue\r\n\r\n".repeat(300), "more"),
        ("ICAP/1.0 404 ICAP Service not found\r\n\r\n".to_owned(), "the scanner answers with ICAP status 404"),
        ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), "the scanner does not speak ICAP"),
        ("ICAP/1.0 204 Unmodi".to_owned(), "more"),
    ] {
        let said = match icap_said(answer.as_bytes()) {
            Some(Said::GivesBack(from)) if from == answer.len() => "as it was".to_owned(),
            Some(Said::GivesBack(from)) => format!("from {from} on"),
            Some(Said::Judged(said)) => verdict(Some(said)),
            None => verdict(None),
        };
        assert_eq!(said, says, "{answer}");
    }
}

/// c-icap begins to give a large file back before it has looked at all of it, and ends early when it finds something: the
/// beginning alone was taken for its word.
#[tokio::test]
async fn a_file_that_is_given_back_is_clean_when_all_of_it_came() {
    let path = std::env::temp_dir().join(format!("snug-given-back-{}", std::process::id()));
    std::fs::write(&path, [b'x'; 100]).unwrap();
    let scanner = Scanner::Icap { host: "127.0.0.1".to_owned(), port: 1344, service: "avscan".to_owned() };
    let heads = format!("ICAP/1.0 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n{MARK}: 1\r\n\r\n");
    let half = "x".repeat(50);
    for (given, says) in [
        (format!("{heads}32\r\n{half}\r\n32;a=b\r\n{half}\r\n0\r\n\r\n"), "clean"),
        (format!("{heads}5\r\nxxxxx\r\n0\r\n\r\n"), "infected: blocked"),
        (format!("{heads}32\r\n{half}\r\n32\r\nxx"), "the scanner breaks off the file that it gives back"),
    ] {
        let (here, mut there) = tokio::io::duplex(64 << 10);
        there.write_all(given.as_bytes()).await.unwrap();
        there.shutdown().await.unwrap();
        let (file, clock) = (Arc::new(File::open(&path).unwrap()), Clock::simulated(1_000_000));
        let said = exchange::judge(&scanner, Box::new(here), Content::File(file, 100), &Signs::default(), &clock).await;
        assert_eq!(verdict(Some(said)), says, "{given}");
    }
    let _ = std::fs::remove_file(&path);
}

#[test]
fn any_bytes_are_an_answer_or_none() {
    let icap: &[u8] = b"ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Threat=\xc3\xa4;\r\n\r\nHTTP/1.1 403 x\r\n\r\n";
    let again: &[u8] = b"ICAP/1.0 100 Continue\r\n\r\nICAP/1.0 204 x\r\n\r\n";
    crate::base::any_bytes::any_bytes(&[icap, again, b"stream: A FOUND\0"], |bytes| {
        let _ = (icap_said(bytes), clamd_said(bytes, true), clamd_said(bytes, false));
        for scanner in ["clamd:/clamd.ctl", "icap://127.0.0.1/avscan"] {
            let _ = edition_said(&Scanner::parse(scanner).unwrap(), bytes, true);
        }
        GivenBack::default().take(bytes);
    });
}

#[test]
fn a_scanner_says_which_database_it_has_or_does_not() {
    let (clamd, icap) = ("clamd:/clamd.ctl", "icap://127.0.0.1/avscan");
    let yes = |text: &str| Some(Some(text.to_owned()));
    for (scanner, answer, ended, says) in [
        (
            clamd,
            "ClamAV 1.4.3/27800/Mon Oct 27 09:50:47 2025\0",
            false,
            yes("ClamAV 1.4.3/27800/Mon Oct 27 09:50:47 2025"),
        ),
        (clamd, "ClamAV 1.4.3/278", false, None),
        (clamd, "ClamAV 1.4.3\0", false, Some(None)),
        (clamd, "COMMAND UNAVAILABLE\0", false, Some(None)),
        (clamd, "", true, Some(None)),
        (icap, "ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\nISTag: \"CI0001-a\"\r\n\r\n", false, yes("\"CI0001-a\"")),
        (icap, "ICAP/1.0 200 OK\r\nISTag: \"CI0001", false, None),
        (icap, "ICAP/1.0 404 ICAP Service not found\r\nISTag: \"x\"\r\n\r\n", false, Some(None)),
        (icap, "ICAP/1.0 200 OK\r\n\r\n", false, Some(None)),
        (icap, "ICAP", true, Some(None)),
    ] {
        let scanner = Scanner::parse(scanner).unwrap();
        assert_eq!(edition_said(&scanner, answer.as_bytes(), ended), says, "{answer}");
    }
}
