//! Files that are whole or not there, and files whose names came from outside: regular ones, of bounded size.

use std::fs::{self, File, FileType};
use std::io::{BufWriter, Error, ErrorKind, Read, Result as IoResult, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

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
enum Links {
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

fn open(path: &Path, max_bytes: u64, links: Links) -> Result<File, FileError> {
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
        true => Err(FileError::TooLarge {
            bytes: max_bytes,
            most: max_bytes,
            exact: false,
        }),
        false => Ok(bytes),
    }
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

/// Replaces a file as a whole: whoever reads it, also after a power cut, sees the old one or the new one. On an error the
/// old one stays.
pub(crate) fn replace<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    use std::os::unix::fs::PermissionsExt;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
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

/// Feeds a file into a hash, a piece at a time: weights may be larger than memory. Returns its bytes.
pub(crate) fn hash_into(hash: &mut Sha256, path: &Path) -> IoResult<u64> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(read) => {
                hash.update(&piece[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
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
