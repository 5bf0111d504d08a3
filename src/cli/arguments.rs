//! The commands and their arguments, as `--help` shows them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ruma::OwnedServerName;

/// A Matrix homeserver that never outgrows the memory it was given.
///
/// Without a command it runs the server. With nothing configured its data goes to ./snug-data and it listens on
/// http://localhost:8008.
#[derive(Parser)]
#[command(
    name = "snug",
    version,
    after_help = "Examples:
  snug                                     run the server
  snug serve --config /etc/snug/snug.toml  the same with a config file
  snug user add alice --admin              make an account
  snug rooms                               rooms, and joins under way
  snug check                               what is wrong, and what would stop federation"
)]
pub struct Arguments {
    /// The config file [default: snug.toml in the data folder, or /etc/snug/snug.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// The folder of the database, the media and the signing key [default: ./snug-data]
    #[arg(long, value_name = "FOLDER", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Address and port for apps; may be given several times
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub listen: Vec<String>,
    /// The memory the server may use: a name such as pi-zero-2w, or a file
    #[arg(long, value_name = "PROFILE", global = true)]
    pub budget: Option<String>,
    /// The part after the colon in users' names
    #[arg(long, value_name = "NAME", global = true)]
    pub server_name: Option<String>,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the server (also without a command)
    #[command(after_help = "Examples:
  snug serve
  snug serve --config /etc/snug/snug.toml
  snug serve --data-dir /var/lib/snug --listen 0.0.0.0:8008 --budget pi-zero-2w

SIGINT (Ctrl-C) and SIGTERM stop it in order.")]
    Serve,
    /// Accounts: add, password, list, admin, limit, quota, lock, suspend, token, deactivate
    #[command(subcommand)]
    User(User),
    /// Rooms, and joins under way: allow, cancel
    #[command(after_help = "Examples:
  snug rooms
  snug rooms allow '!big:example.org'    let one room in that rooms.admission keeps out
  snug rooms cancel '!big:example.org'   end a join that is under way")]
    Rooms {
        #[command(subcommand)]
        command: Option<RoomsCommand>,
    },
    /// The servers with which nothing is exchanged: deny, let-in
    #[command(after_help = "Examples:
  snug servers                     those that are denied, as federation.denied_servers names them
  snug servers deny bad.example    nothing is exchanged with it any more
  snug servers let-in bad.example")]
    Servers {
        #[command(subcommand)]
        command: Option<ServersCommand>,
    },
    /// What users reported to you, and what they said of it: remove
    #[command(after_help = "Examples:
  snug reports
  snug reports remove 7 8    done with these
  snug reports remove --all
The newest are kept: 100 of each user who reports, 2,000 of all.")]
    Reports {
        #[command(subcommand)]
        command: Option<ReportsCommand>,
    },
    /// The policy lists that this server follows, and whom they kept out: rules
    #[command(after_help = "Examples:
  snug moderation                           the lists of moderation.policy_lists, and whom their rules kept out
  snug moderation rules '#bans:example.org' all rules of one")]
    Moderation {
        #[command(subcommand)]
        command: Option<ModerationCommand>,
    },
    /// What files take, and whose they are: remove, remove-remote
    #[command(after_help = "Examples:
  snug media                                what files take, in all and by account
  snug media remove mxc://example.org/AbC   remove one file for good, or what is kept of another server's
  snug media remove-remote                  remove all that is kept of other servers; it is fetched again when asked for")]
    Media {
        #[command(subcommand)]
        command: Option<MediaCommand>,
    },
    /// Tell one user, or all, something in the name of this server, in a room of their own
    #[command(after_help = "Examples:
  snug notice alice 'Your files are larger than what is left of the disk.'
  snug notice --all 'The server is off on Sunday from 8 to 9.'
The text is read from standard input when it is -.")]
    Notice {
        /// Every account that is not closed, and only the text follows
        #[arg(long)]
        all: bool,
        /// The user, such as alice or @alice:example.org, and the text
        #[arg(required = true, num_args = 1..=2, value_names = ["USER", "TEXT"])]
        words: Vec<String>,
    },
    /// Bridges and other application services: add, list, remove, token
    #[command(subcommand)]
    Appservice(ServiceCommand),
    /// Remove what is not needed for good: rooms that nobody here is in, one room, files of other servers
    #[command(after_help = "Examples:
  snug purge                                 what is being removed, and how far it is
  snug purge left                            all rooms that nobody here is in or invited to
  snug purge room '!big:example.org'         one of them
  snug purge room '!big:example.org' --force people here leave it first
  snug purge history --days 365              messages of all rooms that are older than a year
  snug purge devices --unused-days 365       sessions that nobody used for a year
  snug purge media --unused-days 30          what is kept of other servers and nobody asked for
  snug purge space                           what is free in the database goes back to the disk
What is removed goes in small steps while the server runs, and goes on after a restart. When an eighth of the database or more was
removed, `space` follows by itself.")]
    Purge {
        #[command(subcommand)]
        command: Option<PurgeCommand>,
    },
    /// What takes the space: files, the tables of the database, the largest rooms
    #[command(after_help = "Example:
  snug disk
It reads all of the database, some thousand rows at a time.")]
    Disk,
    /// Copy the whole server to a folder or one file while it runs: list, verify, status, cancel
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:
  snug backup /mnt/disk/snug                        into a folder, where each file is once for all backups
  snug backup /mnt/disk/snug --passphrase           sealed to a passphrase, which is asked for
  snug backup /mnt/disk/snug --recipient age1…      sealed to an identity of age
  snug backup /mnt/disk/snug.tar.zst                in one file
  snug backup list /mnt/disk/snug
  snug backup verify /mnt/disk/snug                 reads all of it again
The server's user must be able to write there. The database, media, keys and settings are in it; certificates are not. An
interrupted backup to a folder goes on where it was. [backup] in the config file makes one each day."
    )]
    Backup(Backup),
    /// Bring a server back from a backup, into an empty data folder
    #[command(after_help = "Examples:
  sudo -u snug snug restore /mnt/disk/snug --data-dir /var/lib/snug
  snug restore /mnt/disk/snug --at 2026-11-30T002517Z --data-dir ./snug-data
  snug restore snug.tar.zst.age --identity key.txt --data-dir ./snug-data
Everything is compared with what was written before any of it counts. It says what being restored means for devices and keys.")]
    Restore(Restore),
    /// The memory budget as a table; of a running server also what is in use, and the most that was
    #[command(after_help = "Examples:
  snug budget                      of the running server, or the one it would have
  snug budget --budget pi-zero-2w  that one, whether a server runs or not")]
    Budget,
    /// What the running server does in the background: each worker, what it does, and its last error
    #[command(after_help = "Example:
  snug workers
A unit under `done` is a transaction that another server took, a key that was renewed, a state node or a file that was freed, a join
that went on, or a certificate that was read again; counted since the start of the server.")]
    Workers,
    /// Have the running server read its settings again
    #[command(after_help = "Example:
  snug reload
It says what has changed, and what needs a restart. SIGHUP does the same, and so does `systemctl reload snug`.")]
    Reload,
    /// Check config, certificates, keys, ports, and how other servers reach this one; exit code 1 when something is wrong
    #[command(after_help = "Examples:
  snug check --config /etc/snug/snug.toml
  snug check matrix.org                                               the way to another server, and whether it believes this one
  sudo -u snug snug check --database --config /etc/snug/snug.toml   everything in the database, of a stopped server")]
    Check {
        /// Another server: whether it can be reached, what answers there, and whether it accepts this server's signature
        #[arg(value_name = "SERVER", conflicts_with = "database")]
        server: Option<OwnedServerName>,
        /// Read everything in the database instead, and say what of it is lost; the server must be stopped, nothing is changed
        #[arg(long)]
        database: bool,
    },
    /// Give the disk back what left rooms and finished joins freed in the database; the server must be stopped
    #[command(after_help = "Example:
  sudo systemctl stop snug
  sudo -u snug snug compact --config /etc/snug/snug.toml
  sudo systemctl start snug
What is free in the file is used again anyway; this makes the file smaller. It takes minutes for each GiB on an SD card, and about
25 MiB of memory for each GiB, 150 MiB at most, besides the budget's cache. Cutting it off does no harm; the next start then
takes longer.")]
    Compact,
    /// Make anew what a server must not lose: its signing key, or its database; the server must be stopped
    #[command(subcommand)]
    New(New),
    /// Print a config file with every setting
    #[command(after_help = "Example:
  snug sample-config > snug.toml")]
    SampleConfig,
}

#[derive(Subcommand)]
pub enum PurgeCommand {
    /// Every room that nobody here is in or invited to, with its history
    Left,
    /// One room
    Room {
        room: String,
        /// People of this server leave it first
        #[arg(long)]
        force: bool,
    },
    /// Devices that nobody used for so many days, with what waits for them; whoever uses one again has to log in
    Devices {
        #[arg(long, value_name = "DAYS")]
        unused_days: u32,
    },
    /// Messages older than so many days, of one room or of all; names, members and such stay. It goes on by itself once begun, also
    /// after a restart
    History {
        /// One room; otherwise all that people here are in
        room: Option<String>,
        #[arg(long, value_name = "DAYS")]
        days: u32,
    },
    /// The free space in the database's file: rows are laid out anew in small steps, and the file's end goes back to the disk
    ///
    /// The server runs on. Each part of the database that is half empty, or lies near the file's end, is written once more, in steps of
    /// 64 KiB with pauses. At the end the database is closed and opened again in a moment when nothing is read, which takes some
    /// tenths of a second on a small board. All of it waits while a backup is made. Without such a moment the end goes back when the
    /// server is next stopped. `snug compact` moves what is left, for which the server must be stopped.
    Space,
    /// Files of other servers; they are fetched again when somebody asks for them
    Media {
        /// Only what nobody asked for in as many days
        #[arg(long, value_name = "DAYS", default_value_t = 0)]
        unused_days: u32,
    },
}

#[derive(Args)]
pub struct Backup {
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// A folder, or a file that ends with .tar.zst (.tar.zst.age when sealed)
    pub target: Option<PathBuf>,
    /// Which files: own (those people here uploaded), all, or none
    #[arg(long, value_name = "WHICH", default_value = "own", value_parser = ["own", "all", "none"])]
    pub media: String,
    /// Seal it to a recipient of age
    #[arg(long, value_name = "AGE1…")]
    pub recipient: Option<String>,
    /// Seal it to a passphrase, which is asked for or read from standard input
    #[arg(long, conflicts_with = "recipient")]
    pub passphrase: bool,
    /// Seal it to the passphrase in a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["recipient", "passphrase"])]
    pub passphrase_file: Option<PathBuf>,
    /// Remove backups of the folder that are older, but never the newest
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u32>,
}

#[derive(Subcommand)]
pub enum BackupCommand {
    /// The backups of a folder
    List { target: PathBuf },
    /// Read all of a backup, and compare it with what was written
    Verify {
        /// The folder or file
        source: PathBuf,
        /// Which backup of a folder [default: the newest]
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
        /// What opens a sealed one: a file with an identity of age
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// A file with its passphrase
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// The backup that is being made, and when the last one was
    Status,
    /// End the backup that is being made
    Cancel,
}

#[derive(Args)]
pub struct Restore {
    /// The folder or file
    pub source: PathBuf,
    /// Which backup of a folder [default: the newest]
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// What opens a sealed one: a file with an identity of age
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// A file with its passphrase
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum User {
    /// Make an account; the password is asked for, or read from standard input
    #[command(after_help = "Examples:
  snug user add alice
  snug user add alice --admin
  snug user add alice --link       prints a link with which alice chooses the password
  snug user add warden --bot       an account for a bot: prints its access token, once
  echo 'correct horse battery' | snug user add alice
An empty password makes one up and prints it; others have at least eight characters.")]
    Add {
        /// alice, or @alice:example.org; capital letters are made small
        name: String,
        /// May administer the server
        #[arg(long)]
        admin: bool,
        /// No password yet: a link is printed with which its owner chooses one
        #[arg(long)]
        link: bool,
        /// A bot's: no password, no rate limits, and an access token that is printed once
        #[arg(long, conflicts_with = "link")]
        bot: bool,
    },
    /// Give a bot another access token; the old one ends
    #[command(after_help = "Example:
  snug user token warden
Its device, with the keys on it, stays.")]
    Token { name: String },
    /// Show or set how often an account may send; a change holds at once
    #[command(after_help = "Examples:
  snug user limit alice                                      what holds for alice
  snug user limit alice --messages-per-second 1 --burst 10   events that alice sends
  snug user limit warden --none                              no rate at all, for a bot
  snug user limit alice --default                            as everybody: [rates] in the config file")]
    Limit {
        name: String,
        /// Events in the long run
        #[arg(long, value_name = "N", conflicts_with_all = ["none", "default"], value_parser = clap::value_parser!(u32).range(1..))]
        messages_per_second: Option<u32>,
        /// Events at once [default: those of a second]
        #[arg(long, value_name = "N", requires = "messages_per_second", value_parser = clap::value_parser!(u32).range(1..))]
        burst: Option<u32>,
        /// No rate limits what the account does
        #[arg(long, conflicts_with = "default")]
        none: bool,
        /// As everybody
        #[arg(long)]
        default: bool,
    },
    /// Show or set what the files of an account may take; a change holds for the next upload
    #[command(after_help = "Examples:
  snug user quota alice              what alice's files take, and may take
  snug user quota alice 20 GiB       they may take this much; also KiB, MiB, or a number of bytes
  snug user quota alice unlimited    they may take what there is room for
  snug user quota alice default      as everybody's: account_upload_bytes_max in the config file
Who has more than that keeps it, and can upload nothing more.")]
    Quota {
        name: String,
        /// A size such as 20 GiB; unlimited; or default
        #[arg(num_args = 0..=2, value_name = "SIZE|unlimited|default")]
        size: Vec<String>,
    },
    /// Give an account a new password; its sessions end
    #[command(after_help = "Examples:
  snug user password alice
  snug user password alice --link    prints a link with which alice chooses it")]
    Password {
        name: String,
        /// A link is printed with which its owner chooses the password; the old one works until then
        #[arg(long)]
        link: bool,
    },
    /// All accounts, and what the files take that each has uploaded
    #[command(after_help = "Example:
  snug user list")]
    List,
    /// Make an account an administrator's, or with --remove an ordinary one
    #[command(after_help = "Examples:
  snug user admin alice
  snug user admin alice --remove")]
    Admin {
        name: String,
        #[arg(long)]
        remove: bool,
    },
    /// Keep all sessions of an account from doing anything, without ending them
    #[command(after_help = "Example:
  snug user lock alice
Its apps keep what they have, and go on when it is unlocked.")]
    Lock { name: String },
    /// Let the sessions of a locked account go on
    #[command(after_help = "Example:
  snug user unlock alice")]
    Unlock { name: String },
    /// Let an account read, and neither send, invite, join nor change its profile
    #[command(after_help = "Example:
  snug user suspend alice
It may still leave rooms, take back what it said, and log out.")]
    Suspend { name: String },
    /// Let a suspended account speak again
    #[command(after_help = "Example:
  snug user unsuspend alice")]
    Unsuspend { name: String },
    /// Close an account for good: it leaves its rooms, and nobody gets the name again; asks first
    #[command(after_help = "Examples:
  snug user deactivate alice
  snug user deactivate alice --yes    without asking, for scripts")]
    Deactivate {
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Also the last administrator's account
        #[arg(long)]
        force: bool,
    },
}

#[derive(Subcommand)]
pub enum ServiceCommand {
    /// Register one by its file, of which the server takes a copy into its data folder; a running server knows it at once
    #[command(after_help = "Examples:
  snug appservice add heisenbridge.yaml
  sudo -u snug snug appservice add - < /opt/bridge/registration.yaml   a file that only another user may read
A file that the bridge itself changes is better named in the config: appservices = [\"/opt/bridge/registration.yaml\"]")]
    Add {
        /// The registration that the bridge has made; - is standard input
        file: PathBuf,
    },
    /// What is registered, by which file, and what fails
    List,
    /// Forget one that `add` has registered; its users and rooms stay
    #[command(after_help = "Example:
  snug appservice remove heisenbridge")]
    Remove {
        /// As `snug appservice list` shows it
        id: String,
    },
    /// Make up two tokens for a registration that you write yourself
    Token,
}

#[derive(Subcommand)]
pub enum New {
    /// A new signing key, where the old one is lost or a stranger has seen it
    #[command(after_help = "Example:
  sudo systemctl stop snug
  sudo -u snug snug new signing-key --config /etc/snug/snug.toml
  sudo systemctl start snug
A key that is still there becomes an old one: what it signed stays good. Where it is lost, servers that never saw it cannot check
what this one sent before, so a backup of signing.key is better.")]
    SigningKey,
    /// An empty database beside the signing key, where the old one is lost
    #[command(after_help = "Example:
  snug new database --data-dir /var/lib/snug
The server begins again with its name and its key, without accounts and rooms. Files people uploaded stay in the folder `media`, and
nothing refers to them any more. A backup of the database is better. One that is there is left alone.")]
    Database,
}

#[derive(Subcommand)]
pub enum ModerationCommand {
    /// All rules of a policy list
    #[command(after_help = "Example:
  snug moderation rules '#bans:example.org'")]
    Rules {
        /// As the settings call it
        list: String,
    },
}

#[derive(Subcommand)]
pub enum ServersCommand {
    /// Exchange nothing with a server: its requests are refused, nothing is sent to it, and its people cannot join or invite
    #[command(after_help = "Example:
  snug servers deny bad.example
It is written into the config file, as federation.denied_servers, which takes patterns too.")]
    Deny {
        /// Its name, such as bad.example
        server: String,
    },
    /// Take that back
    #[command(after_help = "Example:
  snug servers let-in bad.example")]
    LetIn {
        /// As `snug servers` shows it
        server: String,
    },
}

#[derive(Subcommand)]
pub enum ReportsCommand {
    /// Remove reports that are done with
    #[command(after_help = "Examples:
  snug reports remove 7 8
  snug reports remove --all")]
    Remove {
        /// As `snug reports` shows them
        #[arg(required_unless_present = "all")]
        numbers: Vec<u32>,
        /// All there are
        #[arg(long)]
        all: bool,
    },
}

#[derive(Subcommand)]
pub enum MediaCommand {
    /// Remove one file for good; of another server's file what is kept here, which is fetched again when asked for
    #[command(after_help = "Example:
  snug media remove mxc://example.org/AbCdEf")]
    Remove {
        /// mxc://server/media-id, as apps show it in the source of a message
        uri: String,
    },
    /// Remove what is kept of other servers; it is fetched again when somebody asks for it
    #[command(after_help = "Examples:
  snug media remove-remote
  snug media remove-remote --unused-days 30   only what nobody asked for in 30 days")]
    RemoveRemote {
        /// Only what nobody asked for in as many days
        #[arg(long, value_name = "DAYS", default_value_t = 0)]
        unused_days: u32,
    },
}

#[derive(Subcommand)]
pub enum RoomsCommand {
    /// Let one room in, whatever rooms.admission says
    #[command(after_help = "Example:
  snug rooms allow '!big:example.org'
  snug rooms allow '!big:example.org' --remove")]
    Allow {
        room: String,
        /// Take it back: a join under way ends, and who is in the room stays
        #[arg(long)]
        remove: bool,
    },
    /// End a join that is under way, or that would go on at the next start, and remove what it stored
    #[command(after_help = "Example:
  snug rooms cancel '!big:example.org'")]
    Cancel { room: String },
}
