//! Which profile fits this machine, when the operator named none.

use std::path::Path;

use super::profile::{Profile, human};

/// A profile is chosen only when the board has this many times its total, so that the system and its page cache have
/// room beside it; a limit set for us alone needs to hold only the total.
const BOARD_SHARE: u64 = 6;

/// The profile picked and the sentence the log says about it.
#[derive(Debug, Clone)]
pub struct Choice {
    pub profile: Profile,
    pub why: String,
}

/// Picks the largest shipped profile that fits what the kernel or a control group grants.
pub fn choose() -> Choice {
    choose_in(Path::new("/"))
}

/// The same for a file system at another root, so that tests can write their own.
fn choose_in(root: &Path) -> Choice {
    let board = mem_total(root);
    let limit = group_limit(root).filter(|limit| board.is_none_or(|board| *limit < board));
    let (fits, why): (u64, String) = match (limit, board) {
        (Some(limit), _) => (limit, format!("its control group may use {}", human(limit))),
        (None, Some(board)) => (board / BOARD_SHARE, format!("the machine has {} of memory", human(board))),
        (None, None) => (0, "the system does not say how much memory there is".to_owned()),
    };
    let profiles = Profile::names().map(|name| Profile::get(name).expect("the shipped profiles add up"));
    let mut profiles: Vec<_> = profiles.collect();
    profiles.sort_by_key(|profile| profile.total);
    let smallest = profiles.remove(0);
    let profile = profiles.into_iter().rev().find(|profile| profile.total <= fits).unwrap_or(smallest);
    let why = format!("memory budget {} ({}), because {why}", profile.name, human(profile.total));
    Choice { profile, why }
}

fn mem_total(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The tightest limit of our control group and those above it, of either version.
fn group_limit(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    groups.lines().filter_map(|line| line_limit(root, line)).min()
}

/// A line is `0::/path` for version 2 and `7:memory:/path` for version 1.
fn line_limit(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
    let (mount, files): (_, &[&str]) = match controllers {
        "" => ("sys/fs/cgroup", &["memory.max", "memory.high"]),
        _ if controllers.split(',').any(|one| one == "memory") => ("sys/fs/cgroup/memory", &["memory.limit_in_bytes"]),
        _ => return None,
    };
    let mount = root.join(mount);
    let own = mount.join(path);
    let folders = own.ancestors().take_while(|folder| folder.starts_with(&mount));
    folders
        .flat_map(|folder| files.iter().map(move |file| folder.join(file)))
        .filter_map(|file| read_limit(&file))
        .min()
}

/// "max" (version 2) and the absurdly large number of version 1 mean no limit.
fn read_limit(file: &Path) -> Option<u64> {
    let limit = std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()?;
    (limit < 1 << 50).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(name: &str, files: &[(&str, &str)]) -> Choice {
        let root = std::env::temp_dir().join(format!("snug-choose-{}-{name}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let choice = choose_in(&root);
        let _ = std::fs::remove_dir_all(&root);
        choice
    }

    #[test]
    fn a_small_board_gets_the_small_profile() {
        let choice = system("board", &[("proc/meminfo", "MemTotal:     430000 kB\n")]);
        assert_eq!(choice.profile.name, "pi-zero-2w");
        let choice = system("pi3", &[("proc/meminfo", "MemTotal:     930000 kB\n")]);
        assert_eq!(choice.profile.name, "pi-3");
        let choice = system("tiny", &[("proc/meminfo", "MemTotal:     120000 kB\n")]);
        assert_eq!(choice.profile.name, "pi-zero-2w");
    }

    #[test]
    fn a_group_limits_more_than_the_board() {
        let meminfo = ("proc/meminfo", "MemTotal:  8000000 kB\n");
        let v2 = [meminfo, ("proc/self/cgroup", "0::/a/b\n"), ("sys/fs/cgroup/a/memory.max", "60000000\n")];
        assert_eq!(system("v2", &v2).profile.name, "pi-zero-2w");
        let v1 = [
            meminfo,
            ("proc/self/cgroup", "7:memory:/a\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "300000000\n"),
        ];
        let choice = system("v1", &v1);
        assert_eq!(choice.profile.name, "pi-4-2g");
        assert!(choice.why.contains("control group"), "{}", choice.why);
        let unlimited = [meminfo, ("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "max\n")];
        assert_eq!(system("unlimited", &unlimited).profile.name, "scaleway-arm");
    }

    #[test]
    fn says_so_when_nothing_is_known() {
        assert!(system("nothing", &[]).why.contains("does not say"));
    }
}
