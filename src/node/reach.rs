//! Which files callers of the node's services may name.
//!
//! A service call reaches the node from anybody on the graph, and the node reads and writes with its own rights. So what
//! is named by a path lies below a folder that the operator has named, or below one of the node's own.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::files::real_place;
use crate::text::{one_line, shown_all};

/// Longest path that is shown whole, in characters.
const LONGEST_PATH: usize = 300;

/// Why a path that a caller named is not used. Says nothing of what lies there.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReachError {
    #[error("{what} '{path}' is no absolute path, and the node's working folder is anywhere")]
    Relative { what: &'static str, path: String },
    #[error(
        "{what} '{path}' lies outside of the folders in which callers may name files ({folders}); the parameter \
         request_folders names further ones"
    )]
    Outside {
        what: &'static str,
        path: String,
        folders: String,
    },
    #[error("{what} '{path}': there is no such file or folder")]
    NotThere { what: &'static str, path: String },
}

/// Folders below which callers may name files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach(Vec<PathBuf>);

impl Reach {
    /// Folders that are not there (yet) count, too.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut folders: Vec<_> = folders.into_iter().collect();
        folders.sort();
        folders.dedup();
        Self(folders)
    }

    /// Where a file or folder to be read lies, without links.
    pub fn existing(&self, what: &'static str, path: &Path) -> Result<PathBuf, ReachError> {
        let place = self.within(what, path)?;
        match place.exists() {
            true => Ok(place),
            false => Err(ReachError::NotThere {
                what,
                path: named(path),
            }),
        }
    }

    /// Where a folder to be made will lie, without links.
    pub fn within(&self, what: &'static str, path: &Path) -> Result<PathBuf, ReachError> {
        if !path.is_absolute() {
            return Err(ReachError::Relative {
                what,
                path: named(path),
            });
        }
        let place = real_place(path).ok();
        let inside = |folder: &PathBuf| {
            let folder = real_place(folder).ok()?;
            place
                .as_ref()
                .is_some_and(|p| p.starts_with(&folder))
                .then_some(())
        };
        match (&place, self.0.iter().find_map(inside)) {
            (Some(place), Some(())) => Ok(place.clone()),
            _ => Err(ReachError::Outside {
                what,
                path: named(path),
                folders: shown_all(self.0.iter().map(|folder| folder.to_string_lossy())),
            }),
        }
    }
}

fn named(path: &Path) -> String {
    one_line(&path.to_string_lossy(), LONGEST_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_lies_below_the_folders_is_found_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("bags/drive")).unwrap();
        std::fs::write(root.join("secret"), "x").unwrap();
        symlink(root.join("secret"), root.join("bags/link")).unwrap();
        symlink(root.join("not-there"), root.join("bags/dangling")).unwrap();
        symlink(root.join("bags"), root.join("data")).unwrap();
        let reach = Reach::new([root.join("data"), root.join("later")]);
        let find = |path: &str| reach.existing("bag", &root.join(path));
        assert_eq!(find("bags/drive"), Ok(root.join("bags/drive")));
        assert_eq!(find("data/drive"), Ok(root.join("bags/drive")));
        for outside in [
            "secret",
            "bags/link",
            "data/../secret",
            "nowhere",
            "bags/dangling",
        ] {
            let error = find(outside).unwrap_err();
            assert!(
                matches!(error, ReachError::Outside { .. }),
                "{outside}: {error}"
            );
        }
        // Whoever may not look gets the same answer whether something is there or not.
        let told = |path: &str| find(path).unwrap_err().to_string().replace(path, "");
        assert_eq!(told("secret"), told("nowhere"));
        assert!(matches!(
            find("bags/gone"),
            Err(ReachError::NotThere { .. })
        ));
        let relative = reach.existing("bag", Path::new("drive"));
        assert!(matches!(relative, Err(ReachError::Relative { .. })));
    }

    #[test]
    fn a_folder_to_be_made_need_not_be_there_but_must_be_below() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        let reach = Reach::new([root.join("saved")]);
        let make = |path: &str| reach.within("path", &root.join(path));
        assert_eq!(make("saved/a/b"), Ok(root.join("saved/a/b")));
        for outside in ["other/a", "saved/../other", "saved/x/../../other", "savedx"] {
            assert!(make(outside).is_err(), "{outside}");
        }
    }

    #[test]
    fn a_refusal_is_short_and_on_one_line() {
        let path = PathBuf::from(format!("/{}\n\x1b[2J", "x".repeat(100_000)));
        let text = Reach::new([])
            .within("recipe", &path)
            .unwrap_err()
            .to_string();
        assert!(
            text.len() < 600 && !text.contains(char::is_control),
            "{text}"
        );
    }
}
