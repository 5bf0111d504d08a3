//! Pictures drawn here, through every kind and back.

use std::io::Cursor;

use super::*;

/// What none of these takes, on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(3600);

/// A picture drawn: a function of where one is.
fn drawn(width: u32, height: u32, channels: usize) -> Vec<u8> {
    let pixel = |x: u32, y: u32| {
        let (across, down) = ((255 * x / width) as u8, (255 * y / height) as u8);
        [across, down, 255 - across, 255 - down / 2]
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y).into_iter().take(channels))).collect()
}

fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let mut file = Vec::new();
    super::jpeg::encode(&drawn(width, height, 3), width, height, &mut file).unwrap();
    file
}

pub(in crate::media) fn png(width: u32, height: u32, channels: usize) -> Vec<u8> {
    let mut file = Vec::new();
    super::png::encode(&drawn(width, height, channels), width, height, channels, &mut file).unwrap();
    file
}

/// A GIF of 256 greys with codes that are never longer than at the beginning: 128 pixels, and all is cleared.
fn gif(width: u16, height: u16, interlaced: bool) -> Vec<u8> {
    let mut file = b"GIF89a".to_vec();
    for number in [width, height] {
        file.extend(number.to_le_bytes());
    }
    file.extend([0xf7, 0, 0]);
    file.extend((0..=255u8).flat_map(|grey| [grey; 3]));
    file.extend([b'!', 0xf9, 4, 0, 0, 0, 0, 0, b',', 0, 0, 0, 0]);
    for number in [width, height] {
        file.extend(number.to_le_bytes());
    }
    file.extend([if interlaced { 0x40 } else { 0 }, 8]);
    let rows: Vec<u16> = match interlaced {
        false => (0..height).collect(),
        true => {
            [(0, 8), (4, 8), (2, 4), (1, 2)].into_iter().flat_map(|(from, by)| (from..height).step_by(by)).collect()
        }
    };
    let grey = |x: u16, y: u16| (u32::from(x) * 127 / u32::from(width) + u32::from(y) * 127 / u32::from(height)) as u16;
    let pixels: Vec<u16> = rows.into_iter().flat_map(|y| (0..width).map(move |x| grey(x, y))).collect();
    let codes = pixels.chunks(128).flat_map(|some| [256].into_iter().chain(some.iter().copied())).chain([257]);
    let (mut held, mut count, mut data) = (0u32, 0, Vec::new());
    for code in codes {
        held |= u32::from(code) << count;
        count += 9;
        while count >= 8 {
            data.push(held as u8);
            held >>= 8;
            count -= 8;
        }
    }
    data.push(held as u8);
    for block in data.chunks(255) {
        file.push(block.len() as u8);
        file.extend(block);
    }
    file.extend([0, b';']);
    file
}

/// A thumbnail, as its pixels and what it is.
fn made(file: &[u8], shape: Shape) -> Result<(Vec<u8>, Made), Failed> {
    let (waiting, mut out) = (Waiting::default(), Vec::new());
    let leash = waiting.leash_for(LONG);
    let mut from = Cursor::new(file);
    let made = Picture::open(&mut from, &leash)?.make(shape, &mut out)?;
    Ok((out, made))
}

fn size(file: &[u8]) -> (u32, u32) {
    let waiting = Waiting::default();
    let leash = waiting.leash_for(LONG);
    Picture::open(&mut Cursor::new(file), &leash).unwrap().upright_size()
}

/// All pixels of a file at its size, three bytes each.
fn pixels(file: &[u8]) -> Vec<u8> {
    let waiting = Waiting::default();
    let leash = waiting.leash_for(LONG);
    let mut from = Cursor::new(file);
    let (mut all, Picture(kind)) = (Vec::new(), Picture::open(&mut from, &leash).unwrap());
    let mut three =
        |channels: usize, row: &[u8]| all.extend(row.chunks(channels).flat_map(|pixel| pixel[..3].to_vec()));
    match kind {
        Kind::Jpeg(of) => of.rows(8, &mut |row| Ok(three(3, row))),
        Kind::Png(of) => {
            let channels = of.channels();
            of.rows(&mut |row| Ok(three(channels, row)))
        }
        Kind::Gif(of) => {
            let channels = of.channels();
            of.rows(&mut |row| Ok(three(channels, row)))
        }
        Kind::Webp(of) => of.rows(&mut |row| Ok(three(3, row))),
    }
    .unwrap();
    all
}

/// The mean distance of two pictures' bytes.
fn distance(one: &[u8], other: &[u8]) -> f64 {
    assert_eq!(one.len(), other.len());
    let sum: u64 = one.iter().zip(other).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / one.len() as f64
}

#[test]
fn what_is_written_is_read_again() {
    for (width, height) in [(1, 1), (7, 5), (16, 16), (33, 17), (200, 100)] {
        let plain = drawn(width, height, 3);
        // The smallest change from pixel to pixel more than half as many points of colour show.
        let near = 3.0 + 130.0 / f64::from(width);
        assert!(distance(&pixels(&jpeg(width, height)), &plain) < near, "{width} {height}");
        assert_eq!(pixels(&png(width, height, 3)), plain);
        assert_eq!(pixels(&png(width, height, 4)), plain);
        assert_eq!(size(&jpeg(width, height)), (width, height));
    }
    assert_eq!(pixels(&gif(50, 21, true)), pixels(&gif(50, 21, false)));
}

#[test]
fn every_kind_becomes_small_and_looks_the_same() {
    for (file, content_type) in
        [(jpeg(1000, 500), "image/jpeg"), (png(1000, 500, 3), "image/png"), (png(1000, 500, 4), "image/png")]
    {
        for (shape, to) in [(Shape::Scale320, (320, 160)), (Shape::Scale640, (640, 320)), (Shape::Scale800, (800, 400))]
        {
            let (small, is) = made(&file, shape).unwrap();
            assert_eq!(is, Made { content_type, width: to.0, height: to.1 });
            assert!(distance(&pixels(&small), &drawn(to.0, to.1, 3)) < 3.0, "{content_type} {to:?}");
        }
        let (small, is) = made(&file, Shape::Crop96).unwrap();
        assert_eq!((is.width, is.height), (96, 96));
        // The middle half is left: red from a quarter to three quarters.
        let row = &pixels(&small)[..3 * 96];
        assert!(row[0].abs_diff(64) < 8 && row[3 * 95].abs_diff(191) < 8, "{row:?}");
    }
    let (small, is) = made(&gif(1000, 500, false), Shape::Scale320).unwrap();
    assert_eq!(is, Made { content_type: "image/jpeg", width: 320, height: 160 });
    let row = &pixels(&small)[..3 * 320];
    assert!(row[0] < 6 && row[3 * 319].abs_diff(127) < 6);
}

#[test]
fn nothing_is_made_larger() {
    for shape in Shape::ALL {
        let (_, is) = made(&jpeg(20, 10), shape).unwrap();
        assert_eq!((is.width, is.height), (20, 10));
        let (_, is) = made(&png(1, 3000, 3), shape).unwrap();
        assert!(is.width == 1 && is.height <= 600, "{is:?}");
    }
}

#[test]
fn what_is_asked_for_becomes_one_of_five() {
    for (asked, shape) in [
        ((1, 1, true), Shape::Crop32),
        ((33, 20, true), Shape::Crop96),
        ((128, 128, true), Shape::Scale320),
        ((32, 32, false), Shape::Scale320),
        ((320, 241, false), Shape::Scale640),
        ((800, 600, false), Shape::Scale800),
        ((9000, 9000, true), Shape::Scale800),
    ] {
        assert_eq!(Shape::of(asked.0, asked.1, asked.2), shape, "{asked:?}");
    }
}

/// Each of the eight ways to hold a camera shows the same corner in the same place.
#[test]
fn a_picture_is_turned_as_the_camera_was() {
    let stored = drawn(4, 3, 3);
    let pixel = |pixels: &[u8], width: u32, x: u32, y: u32| pixels[3 * (y * width + x) as usize..][..3].to_vec();
    // Where the stored picture's upper left corner is seen, in pixels from the left and the top.
    for (number, corner) in
        [(1, (0, 0)), (2, (3, 0)), (3, (3, 2)), (4, (0, 2)), (5, (0, 0)), (6, (2, 0)), (7, (2, 3)), (8, (0, 3))]
    {
        let how = exif::orientation(&exif::tests::of(number));
        let (seen, width, height) = upright(stored.clone(), 3, 4, 3, how);
        assert_eq!((width, height), if number > 4 { (3, 4) } else { (4, 3) });
        assert_eq!(pixel(&seen, width, corner.0, corner.1), stored[..3], "{number}");
    }
    let exif = [&b"\xff\xe1\0\x22Exif\0\0"[..], &exif::tests::of(6)].concat();
    let mut file = jpeg(100, 50);
    file.splice(2..2, exif);
    assert_eq!(size(&file), (50, 100));
    let (small, is) = made(&file, Shape::Scale320).unwrap();
    assert_eq!((is.width, is.height), (50, 100));
    assert!(!small.windows(4).any(|four| four == b"Exif"), "what the camera wrote is not passed on");
}

/// 30,000 by 30,000 pixels are 2.7 GB of rows, in a file of a few kilobytes.
#[test]
fn a_bomb_is_refused_by_its_head() {
    let mut file = png(10, 10, 3);
    file[16..20].copy_from_slice(&30_000u32.to_be_bytes());
    file[20..24].copy_from_slice(&30_000u32.to_be_bytes());
    assert!(matches!(made(&file, Shape::Crop32), Err(Failed::TooManyPixels)));
}

#[test]
fn a_camera_picture_needs_little_memory() {
    let waiting = Waiting::default();
    let leash = waiting.leash_for(LONG);
    let mut file = jpeg(64, 64);
    let head = file.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
    file[head + 5..head + 7].copy_from_slice(&3000u16.to_be_bytes());
    file[head + 7..head + 9].copy_from_slice(&4000u16.to_be_bytes());
    let bytes =
        |file: &[u8]| Picture::open(&mut Cursor::new(file), &leash).unwrap().affordable(Shape::Scale800, 7 << 20);
    assert!(bytes(&file).is_some_and(|(shape, bytes)| shape == Shape::Scale800 && bytes < 5 << 19));
    // Progressive.
    file[head + 1] = 0xc2;
    assert!(file.windows(3).filter(|three| *three == [0xff, 0xda, 0]).count() == 1);
    let scan = file.windows(3).position(|three| three == [0xff, 0xda, 0]).unwrap();
    file[scan + 12] = 0;
    assert!(bytes(&file).is_some_and(|(shape, bytes)| shape == Shape::Scale800 && bytes < 13 << 19));
    let small = Picture::open(&mut Cursor::new(&file), &leash).unwrap().affordable(Shape::Scale800, 4 << 20);
    assert_eq!(small.map(|(shape, _)| shape), Some(Shape::Scale320));
}

#[test]
fn work_ends_when_nobody_waits() {
    let waiting = Waiting::default();
    let leash = waiting.leash_for(LONG);
    drop(waiting);
    let file = jpeg(10, 10);
    assert!(matches!(Picture::open(&mut Cursor::new(&file), &leash), Err(Failed::Cancelled)));
}

/// The time was looked at where the file is read: of a file of some kilobytes with millions of rows nearly never.
#[test]
fn work_ends_within_what_one_read_unpacks_to() {
    let mut file = Vec::new();
    super::png::encode(&vec![7; 3 * 50_000], 1, 50_000, 3, &mut file).unwrap();
    assert!(file.len() < 16 << 10);
    let waiting = Waiting::default();
    let (leash, mut waiting, mut rows, mut from) = (waiting.leash_for(LONG), Some(waiting), 0, Cursor::new(&file[..]));
    let Kind::Png(picture) = Picture::open(&mut from, &leash).unwrap().0 else { panic!("a PNG") };
    let ended = picture.rows(&mut |_| {
        drop(waiting.take());
        rows += 1;
        Ok(())
    });
    assert!(matches!(ended, Err(Failed::Cancelled)) && rows < 2000, "{rows}");
}

#[test]
fn any_bytes_are_a_picture_or_an_error() {
    let exif = [&b"\xff\xe1\0\x22Exif\0\0"[..], &exif::tests::of(6)].concat();
    let mut turned = jpeg(20, 10);
    turned.splice(2..2, exif);
    let seeds: [&[u8]; 8] = [
        &jpeg(40, 30),
        &turned,
        PROGRESSIVE,
        &png(9, 7, 3),
        &png(30, 4, 4),
        &gif(20, 9, false),
        &gif(9, 20, true),
        WEBP,
    ];
    for seed in seeds {
        made(seed, Shape::Crop32).unwrap();
    }
    // Two other programs' files show the same.
    assert!(distance(&pixels(PROGRESSIVE), &pixels(WEBP)) < 25.0);
    crate::base::any_bytes::any_bytes(&seeds, |bytes| {
        let waiting = Waiting::default();
        let leash = waiting.leash();
        let mut from = Cursor::new(bytes);
        let Ok(picture) = Picture::open(&mut from, &leash) else { return };
        // As on the smallest board: whatever needs more is not tried.
        let Some((shape, _)) = picture.affordable(Shape::Scale800, 1 << 20) else { return };
        let mut out = Vec::new();
        if let Ok(made) = picture.make(shape, &mut out) {
            assert_eq!(size(&out), (made.width, made.height));
        }
    });
}

/// Sixteen by sixteen pixels in ten scans, by another program.
#[rustfmt::skip]
const PROGRESSIVE: &[u8] = b"\
    \xff\xd8\xff\xe0\x00\x10\x4a\x46\x49\x46\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xdb\x00\x43\x00\x1b\x12\x14\x17\x14\
    \x11\x1b\x17\x16\x17\x1e\x1c\x1b\x20\x28\x42\x2b\x28\x25\x25\x28\x51\x3a\x3d\x30\x42\x60\x55\x65\x64\x5f\x55\x5d\x5b\x6a\
    \x78\x99\x81\x6a\x71\x90\x73\x5b\x5d\x85\xb5\x86\x90\x9e\xa3\xab\xad\xab\x67\x80\xbc\xc9\xba\xa6\xc7\x99\xa8\xab\xa4\xff\
    \xdb\x00\x43\x01\x1c\x1e\x1e\x28\x23\x28\x4e\x2b\x2b\x4e\xa4\x6e\x5d\x6e\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\
    \xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\
    \xa4\xa4\xa4\xa4\xa4\xa4\xa4\xa4\xff\xc2\x00\x11\x08\x00\x10\x00\x10\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xc4\x00\
    \x15\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x02\xff\xc4\x00\x15\x01\x01\x01\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x03\xff\xda\x00\x0c\x03\x01\x00\x02\x10\x03\x10\x00\x00\x01\x05\xa1\x34\
    \xff\xc4\x00\x17\x10\x01\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02\x00\x11\xff\xda\x00\x08\x01\
    \x01\x00\x01\x05\x02\x27\x48\x29\x34\xcf\x77\xff\xc4\x00\x16\x11\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x12\x21\xff\xda\x00\x08\x01\x03\x01\x01\x3f\x01\x8a\x7f\xff\xc4\x00\x14\x11\x01\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xda\x00\x08\x01\x02\x01\x01\x3f\x01\x7f\xff\xc4\x00\x17\x10\x01\x00\x03\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x11\x21\xff\xda\x00\x08\x01\x01\x00\x06\x3f\x02\x6a\xe3\xff\xc4\x00\
    \x18\x10\x01\x01\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x11\x01\x00\x21\x31\xff\xda\x00\x08\x01\x01\x00\
    \x01\x3f\x21\x02\xba\x65\x06\x12\xec\x9b\xdc\x77\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x00\x10\xd3\xff\xc4\x00\
    \x17\x11\x00\x03\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x11\x61\xff\xda\x00\x08\x01\x03\x01\x01\
    \x3f\x10\xab\xb3\xff\xc4\x00\x17\x11\x00\x03\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x11\x21\xff\
    \xda\x00\x08\x01\x02\x01\x01\x3f\x10\x76\xe1\xff\xc4\x00\x1a\x10\x00\x03\x00\x03\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x01\x11\x21\x31\x41\x51\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x10\x81\x7b\x70\xac\x49\x4a\xfb\x44\x84\xc4\xe2\
    \x5b\xc0\xa6\x4c\x53\xff\xd9";

/// The same as lossy WebP.
#[rustfmt::skip]
const WEBP: &[u8] = b"\
    \x52\x49\x46\x46\x60\x00\x00\x00\x57\x45\x42\x50\x56\x50\x38\x20\x54\x00\x00\x00\xd0\x01\x00\x9d\x01\x2a\x10\x00\x10\x00\
    \x05\x40\x7c\x25\xb0\x02\x74\x00\x64\xcc\x17\x50\x00\x00\xfe\xd9\x52\x50\x2a\x4b\xac\x6d\x23\x9f\x1a\xe6\x8f\x02\xee\x93\
    \xe2\x35\x54\xfb\x38\x08\xb6\x34\x5d\x20\xd6\x0f\x83\xba\x80\x48\x15\xd6\x10\xec\xe4\xa0\x0c\xf4\xd6\x5c\xf0\x79\xe3\x88\
    \xbc\xf8\xf1\xfd\x0e\x7a\xad\x09\x0e\x95\xf1\x00\x00\x00";
