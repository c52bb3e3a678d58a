//! Files and folders that subcommands write: checked before the work, and whole or not there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::Access;

use crate::files::{self, Target};

/// The folder that holds a path.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Fails where [`write_whole`] would, without a trace.
pub fn check_file(path: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let check = || -> anyhow::Result<()> {
        ensure!(path.file_name().is_some(), "this is no name for a file");
        ensure!(
            !path.is_dir(),
            "it is a folder; name a file, for example one in it"
        );
        match files::target(path)? {
            // Whoever reads a FIFO would take it for the end if it was opened and closed now, and a device may act on it.
            Target::Stream(path) => Ok(rustix::fs::access(&path, Access::WRITE_OK)?),
            Target::Whole(path) => writable_folder(&parent(&path)),
        }
    };
    check().with_context(context)
}

/// Fails where a folder cannot be made anew, with the folders above it, without a trace.
pub fn check_new_folder(path: &Path) -> anyhow::Result<()> {
    ensure!(
        fs::symlink_metadata(path).is_err(),
        "{} exists already; choose another folder, or remove it",
        path.display()
    );
    check_folder(path)
}

/// The same for a folder that may be there as long as it is empty.
pub fn check_empty_folder(path: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(path).map(|mut entries| entries.next());
    match entries {
        Ok(None) => check_folder(path),
        _ => check_new_folder(path),
    }
}

/// Fails where a folder is not writable or cannot be made, with the folders above it, without a trace.
pub fn check_folder(path: &Path) -> anyhow::Result<()> {
    let mut there = path.to_owned();
    while fs::symlink_metadata(&there).is_err() {
        there = parent(&there);
    }
    writable_folder(&there).with_context(|| format!("cannot write {}", path.display()))
}

fn writable_folder(folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    match fs::metadata(folder) {
        Ok(found) if !found.is_dir() => bail!("{shown} is no folder"),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("the folder {shown} is not there; make it first")
        }
        Err(error) => return Err(error).context(format!("{shown}")),
    }
    // Rights alone do not tell: the file system may be read-only, or full of inodes.
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("no file can be made in {shown}")),
    }
}

/// Writes a file in one step: it appears complete or not at all, also where links lead to it. What is no regular file,
/// as /dev/stdout or a FIFO, is written to as it comes.
pub fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    match files::write_out(path, write) {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        written => written.with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Whether whoever was to read has gone away, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(|e| e.kind());
        let json = cause.downcast_ref::<serde_json::Error>();
        let json = json.and_then(|e| e.io_error_kind());
        io.or(json) == Some(std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_fails_half_way_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boxes.json");
        fs::write(&path, "old").unwrap();
        let failed = write_whole(&path, |file| {
            file.write_all(b"new")?;
            bail!("stopped")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_through_a_link_is_written_where_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old and longer").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        check_file(&link).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old and longer");
        write_whole(&link, |out| Ok(out.write_all(b"new")?)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert!(link.is_symlink());
        // Also where nothing is there yet.
        fs::remove_file(&file).unwrap();
        check_file(&link).unwrap();
        assert!(!file.exists(), "a check leaves no trace");
        write_whole(&link, |out| Ok(out.write_all(b"newer")?)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "newer");
        assert!(link.is_symlink());
        // And no file takes the place of a device.
        write_whole(Path::new("/dev/null"), |out| Ok(out.write_all(b"new")?)).unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }

    #[test]
    fn a_check_does_not_end_what_a_reader_of_a_fifo_waits_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // Without a reader it would block if it opened it.
        check_file(&pipe).unwrap();
        let reader = pipe.clone();
        let read = std::thread::spawn(move || fs::read_to_string(reader).unwrap());
        check_file(&pipe).unwrap();
        write_whole(&pipe, |out| Ok(out.write_all(b"boxes")?)).unwrap();
        assert_eq!(read.join().unwrap(), "boxes");
    }

    #[test]
    fn what_cannot_be_written_is_found_before_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        fs::write(inside("file"), "").unwrap();
        fs::create_dir(inside("folder")).unwrap();
        for (path, said) in [
            (inside("absent/a.json"), "make it first"),
            (inside("folder"), "it is a folder"),
            (inside("file/a.json"), "file"),
            (PathBuf::from("/proc/a.json"), "/proc"),
            (PathBuf::new(), "no name"),
        ] {
            let error = format!("{:#}", check_file(&path).unwrap_err());
            assert!(
                error.contains(said) && error.starts_with("cannot write"),
                "{error}"
            );
        }
        for (path, said) in [
            (inside("folder"), "exists already"),
            (inside("file/bag"), "is no folder"),
            (PathBuf::from("/proc/new/bag"), "/proc"),
        ] {
            let error = format!("{:#}", check_new_folder(&path).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
        assert!(check_empty_folder(folder.path()).is_err());
        check_empty_folder(&inside("folder")).unwrap();
        check_empty_folder(&inside("new")).unwrap();
        check_file(&inside("a.json")).unwrap();
        check_file(&inside("file")).unwrap();
        check_new_folder(&inside("new/deeper/bag")).unwrap();
        check_folder(&inside("folder")).unwrap();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "no trace of the checks");
    }
}
