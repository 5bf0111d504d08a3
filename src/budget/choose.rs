//! Which profile fits this machine, when the operator named none.

use std::fmt;
use std::path::{Path, PathBuf};

use super::profile::{Profile, human};
use crate::base::sort_few_by;

/// A profile is chosen only when the board has this many times its total, so that the system and its page cache have
/// room beside it. A limit set for this process alone needs to hold only the total.
const BOARD_SHARE: u64 = 6;

/// The chosen profile and the sentence about it in the log.
#[derive(Debug, Clone)]
pub struct Choice {
    pub profile: Profile,
    pub why: String,
}

/// The memory that the kernel lets this process have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Of the whole machine, in bytes.
    board: Option<u64>,
    /// The tightest limit of a control group, when it is less than that, and the file that sets it.
    group: Option<(u64, PathBuf)>,
}

/// Picks the largest shipped profile that fits the limit of the kernel or of a control group.
pub fn choose() -> Choice {
    Granted::now().choose()
}

impl Granted {
    pub fn now() -> Self {
        Self::in_root(Path::new("/"))
    }

    /// The same for a file system at another root, so that tests can write their own.
    fn in_root(root: &Path) -> Self {
        let board = mem_total(root);
        let group = group_limit(root).filter(|(limit, _)| board.is_none_or(|board| *limit < board));
        Self { board, group }
    }

    /// What the control group lets this process take, where that is less than the board has.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.group.as_ref().map(|(limit, _)| *limit)
    }

    fn choose(&self) -> Choice {
        let fits = match (&self.group, self.board) {
            (Some((limit, _)), _) => *limit,
            (None, Some(board)) => board / BOARD_SHARE,
            (None, None) => 0,
        };
        let profiles = Profile::names().map(|name| Profile::get(name).expect("the shipped profiles add up"));
        let mut profiles: Vec<_> = profiles.collect();
        sort_few_by(&mut profiles, |profile| profile.total);
        let smallest = profiles.remove(0);
        let profile = profiles.into_iter().rev().find(|profile| profile.total <= fits).unwrap_or(smallest);
        let why = format!("memory budget {} ({}), because {self}", profile.name, human(profile.total));
        Choice { profile, why }
    }

    /// A warning for the operator when the kernel would end the server before the profile's total is reached.
    pub fn warning(&self, profile: &Profile) -> Option<String> {
        let (limit, advice) = match (&self.group, self.board) {
            (Some((limit, _)), _) => (*limit, "choose a smaller budget, or raise the limit (systemd: MemoryMax)"),
            (None, Some(board)) => (board, "choose a smaller budget"),
            (None, None) => return None,
        };
        (profile.total > limit).then(|| {
            format!(
                "the memory budget {} may take {}, but {self}: the kernel would end the server before that; {advice}",
                profile.name,
                human(profile.total)
            )
        })
    }
}

/// The observed limit: "its control group may use 48.00 MiB (/sys/fs/cgroup/…/memory.max)".
impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.group, self.board) {
            (Some((limit, file)), _) => {
                write!(f, "its control group may use {} ({})", human(*limit), file.display())
            }
            (None, Some(board)) => write!(f, "the machine has {} of memory", human(board)),
            (None, None) => f.write_str("the system does not say how much memory the machine has"),
        }
    }
}

fn mem_total(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The tightest limit of our control group and those above it, of either version, and the file it is in.
fn group_limit(root: &Path) -> Option<(u64, PathBuf)> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    groups.lines().filter_map(|line| line_limit(root, line)).min()
}

/// A line is `0::/path` for version 2 and `7:memory:/path` for version 1.
fn line_limit(root: &Path, line: &str) -> Option<(u64, PathBuf)> {
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
        .filter_map(|file| Some((read_limit(&file)?, file)))
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
        granted(name, files).choose()
    }

    fn granted(name: &str, files: &[(&str, &str)]) -> Granted {
        let root = std::env::temp_dir().join(format!("snug-choose-{}-{name}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let granted = Granted::in_root(&root);
        let _ = std::fs::remove_dir_all(&root);
        granted
    }

    #[test]
    fn a_small_board_gets_the_small_profile() {
        let choice = system("board", &[("proc/meminfo", "MemTotal:     430000 kB\n")]);
        assert_eq!(choice.profile.name, "pi-zero-2w");
        let choice = system("pi3", &[("proc/meminfo", "MemTotal:     930000 kB\n")]);
        assert_eq!(choice.profile.name, "pi-3");
        let choice = system("tiny", &[("proc/meminfo", "MemTotal:     120000 kB\n")]);
        assert_eq!(choice.profile.name, "router-32");
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
    fn warns_of_a_budget_the_kernel_does_not_grant() {
        let meminfo = ("proc/meminfo", "MemTotal:  8000000 kB\n");
        let service = [
            meminfo,
            ("proc/self/cgroup", "0::/system.slice/snug.service\n"),
            ("sys/fs/cgroup/system.slice/snug.service/memory.max", "50331648\n"),
        ];
        let (service, board) = (granted("service", &service), granted("large", &[meminfo]));
        let (small, large) = (Profile::get("pi-zero-2w").unwrap(), Profile::get("pi-3").unwrap());
        assert_eq!(service.warning(&small), None);
        let said = service.warning(&large).unwrap();
        assert!(
            ["pi-3", "128.00 MiB", "48.00 MiB", "snug.service/memory.max", "MemoryMax"]
                .iter()
                .all(|word| said.contains(word)),
            "{said}"
        );
        assert_eq!(board.warning(&large), None);
        let tiny = granted("small", &[("proc/meminfo", "MemTotal:  100000 kB\n")]);
        assert!(tiny.warning(&large).unwrap().contains("97.66 MiB"));
        assert_eq!(granted("silent", &[]).warning(&large), None);
    }

    #[test]
    fn says_so_when_nothing_is_known() {
        assert!(system("nothing", &[]).why.contains("does not say"));
    }
}
