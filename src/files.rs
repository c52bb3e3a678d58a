//! Files that are whole or not there.

use std::fs::{self, File};
use std::io::{BufWriter, Error, ErrorKind, Read, Result as IoResult, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

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
