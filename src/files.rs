//! Files that are whole or not there, and files whose names came from outside: regular ones, of bounded size.

use std::fs::{self, File, FileType};
use std::io::{BufWriter, Error, ErrorKind, Read, Result as IoResult, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why a file is not opened, or not read to its end.
#[derive(Debug, Error)]
pub enum FileError {
    #[error(transparent)]
    Io(#[from] Error),
    #[error("it is {0}, and only a regular file is read")]
    NotRegular(&'static str),
    #[error("it has {}{bytes} bytes, and at most {most} are read", if *.exact { "" } else { "more than " })]
    TooLarge {
        bytes: u64,
        most: u64,
        /// Otherwise it has more, of which nothing more was read.
        exact: bool,
    },
}

impl FileError {
    /// More was there to be read than the bound, and was not read.
    fn more_than(most: u64) -> Self {
        FileError::TooLarge {
            bytes: most,
            most,
            exact: false,
        }
    }
}

/// For errors that already say which file it is, and that it could not be read.
impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io(error) => error,
            FileError::NotRegular(_) => Error::new(ErrorKind::InvalidInput, error),
            FileError::TooLarge { .. } => Error::new(ErrorKind::FileTooLarge, error),
        }
    }
}

/// Whether links are followed in the last part of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    Follow,
    Refuse,
}

/// Opens a file whose name came from outside, through links if it must be. It has to be a regular file of at most
/// `max_bytes`: a FIFO does not block, and a device is not touched.
///
/// The file may grow afterwards; what reads it has to keep to the bound, too, as [`read_bounded`] does.
pub fn open_regular(path: &Path, max_bytes: u64) -> Result<File, FileError> {
    open(path, max_bytes, Links::Follow)
}

/// [`open_regular`] where the name itself may not be a link, as in a folder that is copied or was sent.
pub fn open_no_link(path: &Path, max_bytes: u64) -> Result<File, FileError> {
    open(path, max_bytes, Links::Refuse)
}

/// [`open_regular`] or [`open_no_link`].
pub fn open(path: &Path, max_bytes: u64, links: Links) -> Result<File, FileError> {
    // Opening a device may do something already, such as start a watchdog, so it is looked at before. It may be another
    // file by the time it is opened, so it is looked at again.
    let found = match links {
        Links::Follow => fs::metadata(path),
        Links::Refuse => fs::symlink_metadata(path),
    };
    regular(found?.file_type())?;
    let mut flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    if links == Links::Refuse {
        flags |= rustix::fs::OFlags::NOFOLLOW;
    }
    let mut options = File::options();
    let options = options.read(true).custom_flags(flags.bits() as i32);
    let file = options.open(path)?;
    let found = file.metadata()?;
    regular(found.file_type())?;
    match found.len() {
        bytes if bytes > max_bytes => Err(FileError::TooLarge {
            bytes,
            most: max_bytes,
            exact: true,
        }),
        _ => Ok(file),
    }
}

fn regular(found: FileType) -> Result<(), FileError> {
    let kind = match found {
        found if found.is_file() => return Ok(()),
        found if found.is_dir() => "a folder",
        found if found.is_symlink() => "a symbolic link",
        found if found.is_fifo() => "a FIFO",
        found if found.is_socket() => "a socket",
        _ => "a device",
    };
    Err(FileError::NotRegular(kind))
}

/// Reads a file that [`open_regular`] opens, and no more than `max_bytes` of it: files of /proc say that they are empty,
/// and others grow.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    read_open(open_regular(path, max_bytes)?, max_bytes)
}

/// Reads an open file, if it has no more than `max_bytes`.
pub fn read_open(file: File, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    let there = file.metadata()?.len().min(max_bytes);
    let mut bytes = Vec::new();
    // A file may have holes, and say that it is larger than all memory.
    let room = usize::try_from(there).ok();
    room.and_then(|room| bytes.try_reserve_exact(room).ok())
        .ok_or_else(|| Error::from(ErrorKind::OutOfMemory))?;
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max_bytes {
        true => Err(FileError::more_than(max_bytes)),
        false => Ok(bytes),
    }
}

/// Copies a regular file that is no link, of at most so many bytes, to where nothing is yet. Returns its bytes.
pub fn copy(from: &Path, to: &Path, max_bytes: u64) -> Result<u64, FileError> {
    let source = open_no_link(from, max_bytes)?;
    let mut copy = File::options().write(true).create_new(true).open(to)?;
    let bytes = std::io::copy(&mut source.take(max_bytes.saturating_add(1)), &mut copy)?;
    match bytes > max_bytes {
        true => Err(FileError::more_than(max_bytes)),
        false => Ok(bytes),
    }
}

/// Where something that is not there yet will lie once it is made, through whatever links lead there.
pub fn real_place(path: &Path) -> IoResult<PathBuf> {
    let mut there = path.to_owned();
    let mut below = Vec::new();
    while let Err(error) = fs::symlink_metadata(&there) {
        let Some(name) = there
            .file_name()
            .filter(|_| error.kind() == ErrorKind::NotFound)
        else {
            // Behind a folder that is not there, `..` leads nowhere that could be known.
            return Err(error);
        };
        below.push(name.to_owned());
        if !there.pop() || there.as_os_str().is_empty() {
            there = ".".into();
        }
    }
    let mut real = there.canonicalize()?;
    real.extend(below.iter().rev());
    Ok(real)
}

/// Whether this is the name of a file in a folder and nothing else: no path, nothing hidden, nothing that cannot be
/// shown.
pub fn is_plain_name(name: &str) -> bool {
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\');
    !name.is_empty() && !name.starts_with('.') && !name.contains(odd)
}

/// Removes a file or a folder, whether it is there or not.
pub(crate) fn remove(path: &Path) -> IoResult<()> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits until a file, or the names in a folder, are on the disk.
pub(crate) fn sync(path: &Path) -> IoResult<()> {
    File::open(path)?.sync_all()
}

/// Where what is written to a path goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A regular file, or nothing yet: a new file can take this place at once. No link leads away from it.
    Whole(PathBuf),
    /// A device, a FIFO, or a stream of this process by a path such as /dev/stdout: written to as it comes.
    Stream(PathBuf),
}

/// Follows the links of a path that is to be written: a file takes the place of the last one's target, and not that of the
/// link. Nothing is opened.
pub(crate) fn target(path: &Path) -> IoResult<Target> {
    /// As many as the kernel follows.
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found.file_type(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Target::Whole(path)),
            Err(error) => return Err(error),
        };
        if found.is_file() {
            return Ok(Target::Whole(path));
        }
        if found.is_dir() {
            return Err(Error::from(ErrorKind::IsADirectory));
        }
        if !found.is_symlink() {
            return Ok(Target::Stream(path));
        }
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        // These lead to what is open and not to a name, though they show one.
        if folder.canonicalize().is_ok_and(|real| is_open_files(&real)) {
            return Ok(Target::Stream(path));
        }
        path = folder.join(fs::read_link(&path)?);
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// Whether this is a folder of /proc with the open files of a process or thread.
fn is_open_files(folder: &Path) -> bool {
    folder.starts_with("/proc") && folder.ends_with("fd")
}

/// Writes what a person or another program wants at a path: a regular file as a whole, see [`replace`], also where links
/// lead to it; anything else as it comes. No device or FIFO gives way to a file.
pub(crate) fn write_out<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    match target(path)? {
        Target::Whole(path) => replace(&path, write),
        Target::Stream(path) => {
            // Appended, since a shell may have the same file open and may have written to it; a device does not care.
            let mut file = BufWriter::new(File::options().append(true).open(path)?);
            write(&mut file)?;
            Ok(file.flush()?)
        }
    }
}

/// Replaces a file as a whole: whoever reads it, also after a power cut, sees the old one or the new one. On an error the
/// old one stays. A link is replaced itself, and what is neither that nor a regular file stays.
pub(crate) fn replace<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    use std::os::unix::fs::PermissionsExt;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs::symlink_metadata(path).map(|found| found.file_type()) {
        Ok(found) if !found.is_symlink() => regular(found).map_err(Error::from)?,
        _ => {}
    }
    // Temporary files are private; this one gets the rights that any new file gets.
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    let mut buffered = BufWriter::new(&mut file);
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync(folder)?;
    Ok(())
}

/// Feeds a file into a hash, a piece at a time: weights may be larger than memory. Returns its bytes, at most `max_bytes`.
pub(crate) fn hash_into(hash: &mut Sha256, file: File, max_bytes: u64) -> Result<u64, FileError> {
    let mut file = file.take(max_bytes.saturating_add(1));
    let mut piece = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) if bytes > max_bytes => {
                return Err(FileError::more_than(max_bytes));
            }
            Ok(0) => return Ok(bytes),
            Ok(read) => {
                hash.update(&piece[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace::<Error>(&path, |file| file.write_all(b"old")).unwrap();
        let failed = replace(&path, |file| {
            file.write_all(b"half")?;
            Err(Error::other("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    fn fifo(path: &Path) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    /// The result of `work`, which must not wait for anybody.
    fn at_once<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(work()));
        let patience = std::time::Duration::from_secs(60);
        result.recv_timeout(patience).unwrap()
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), b"content").unwrap();
        fs::create_dir(path("folder")).unwrap();
        fifo(&path("fifo"));
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (link, target) in [
            ("to_file", "file"),
            ("to_fifo", "fifo"),
            ("to_device", "/dev/zero"),
            ("to_nothing", "absent"),
            ("to_itself", "to_itself"),
        ] {
            std::os::unix::fs::symlink(target, path(link)).unwrap();
        }
        for name in ["file", "to_file"] {
            assert_eq!(read_bounded(&path(name), 7).unwrap(), b"content");
        }
        for (name, said) in [
            ("folder", "a folder"),
            ("fifo", "a FIFO"),
            ("socket", "a socket"),
            ("to_fifo", "a FIFO"),
            ("to_device", "a device"),
            ("to_nothing", "No such file"),
            ("to_itself", "symbolic links"),
            ("absent", "No such file"),
            ("file/inner", "Not a directory"),
        ] {
            let tried = path(name);
            let error = at_once(move || read_bounded(&tried, 7)).unwrap_err();
            assert!(error.to_string().contains(said), "{name}: {error}");
        }
        open_no_link(&path("file"), 7).unwrap();
        for name in ["to_file", "to_fifo", "to_device", "to_nothing"] {
            let error = open_no_link(&path(name), 7).unwrap_err().to_string();
            assert!(error.contains("a symbolic link"), "{name}: {error}");
        }
    }

    #[test]
    fn no_more_is_read_than_the_bound_whatever_a_file_says_of_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"content").unwrap();
        let error = read_bounded(&path, 6).unwrap_err().to_string();
        assert!(
            error.contains("7 bytes") && error.contains("at most 6"),
            "{error}"
        );
        // One that says it is empty.
        let error = read_bounded(Path::new("/proc/self/status"), 100).unwrap_err();
        assert!(error.to_string().contains("more than 100"), "{error}");
        // One that says it is larger than all memory: a hole.
        let hole = File::create(folder.path().join("hole")).unwrap();
        hole.set_len(1 << 42).unwrap();
        let hole = folder.path().join("hole");
        let error = read_bounded(&hole, 1 << 20).unwrap_err();
        assert!(matches!(error, FileError::TooLarge { bytes, .. } if bytes == 1 << 42));
        let error = Error::from(error);
        assert!(error.kind() == ErrorKind::FileTooLarge && error.to_string().contains("bytes"));
    }

    #[test]
    fn what_is_written_through_a_link_replaces_its_target_and_the_link_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("real")).unwrap();
        fs::write(path("real/file"), "old and longer").unwrap();
        for (link, leads_to) in [
            ("link", "second"),
            ("second", "dir/file"),
            ("dir", "real"),
            ("dangling", "dir/new"),
            ("itself", "itself"),
        ] {
            std::os::unix::fs::symlink(leads_to, path(link)).unwrap();
        }
        let write = |name: &str, text: &str| {
            write_out::<Error>(&path(name), |file| file.write_all(text.as_bytes()))
        };
        // Whoever has the old one open still reads it: the new one is another file.
        let mut open = File::open(path("real/file")).unwrap();
        for (name, at) in [("link", "real/file"), ("dangling", "real/new")] {
            write(name, "new").unwrap();
            assert!(path(name).is_symlink());
            assert_eq!(fs::read(path(at)).unwrap(), b"new");
        }
        let mut old = String::new();
        open.read_to_string(&mut old).unwrap();
        assert_eq!(old, "old and longer");
        assert!(write("itself", "new").is_err());
        assert!(write("real", "new").is_err());
        let failed = write_out(&path("link"), |file| {
            file.write_all(b"half")?;
            Err(Error::other("no more"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(path("real/file")).unwrap(), b"new");
        assert_eq!(fs::read_dir(path("real")).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe"), folder.path().join("link"));
        fifo(&pipe);
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [pipe.clone(), link.clone()] {
            let reader = pipe.clone();
            let read = std::thread::spawn(move || fs::read(reader).unwrap());
            write_out::<Error>(&path, |file| file.write_all(b"to the reader")).unwrap();
            assert_eq!(read.join().unwrap(), b"to the reader");
        }
        let error = replace::<Error>(&pipe, |file| file.write_all(b"x")).unwrap_err();
        assert!(error.to_string().contains("a FIFO"), "{error}");
        let found = fs::symlink_metadata(&pipe).unwrap().file_type();
        assert!(found.is_fifo() && link.is_symlink());
        let null = Path::new("/dev/null");
        write_out::<Error>(null, |file| file.write_all(b"x")).unwrap();
        assert!(replace::<Error>(null, |file| file.write_all(b"x")).is_err());
        assert!(fs::metadata(null).unwrap().file_type().is_char_device());
        // A file that this process has open, by the path that shows that: what is in it stays.
        let file = folder.path().join("file");
        fs::write(&file, "before ").unwrap();
        let open = File::options().append(true).open(&file).unwrap();
        use std::os::fd::AsRawFd;
        for shown in ["/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"] {
            let path = Path::new(shown).join(open.as_raw_fd().to_string());
            write_out::<Error>(&path, |file| file.write_all(b"and after ")).unwrap();
        }
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "before and after and after and after ");
    }

    #[test]
    fn a_place_that_is_not_there_yet_is_known_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("own")).unwrap();
        std::os::unix::fs::symlink("own", path("link")).unwrap();
        std::os::unix::fs::symlink("absent", path("dangling")).unwrap();
        for (given, place) in [
            ("own", "own"),
            ("own/new/deeper", "own/new/deeper"),
            ("link/new", "own/new"),
            ("own/../link/../link/new", "own/new"),
        ] {
            assert_eq!(
                real_place(&path(given)).unwrap(),
                real.join(place),
                "{given}"
            );
        }
        for given in ["new/../own/x", "dangling/new", "dangling"] {
            assert!(real_place(&path(given)).is_err(), "{given}");
        }
    }

    #[test]
    fn plain_names_lead_nowhere() {
        for name in ["a", "model.yaml", "a b.onnx", "ä.onnx", "a..b"] {
            assert!(is_plain_name(name), "{name:?}");
        }
        for name in [
            "", ".", "..", ".hidden", "a/b", "/a", "../a", "a\\b", "a\0", "a\n", "a\x1b[2J",
        ] {
            assert!(!is_plain_name(name), "{name:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_removed_already() {
        let folder = tempfile::tempdir().unwrap();
        remove(&folder.path().join("absent")).unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("file"), "").unwrap();
        remove(&inner).unwrap();
        assert!(!inner.exists());
    }
}
