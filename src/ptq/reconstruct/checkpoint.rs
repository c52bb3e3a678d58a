//! Finished blocks on disk, so that a reconstruction that was killed goes on where it was.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::quantizer::Quantizer;
use super::driver::Outcome;

/// What a finished block leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BlockState {
    /// Integers per layer of the block, by the layer's index in the plan.
    pub integers: Vec<(usize, Vec<i8>)>,
    /// Steps that were learned, by the group's index in the plan.
    pub steps: Vec<(usize, Quantizer)>,
    pub outcome: Outcome,
}

/// A folder with one file per finished block.
///
/// The key stands for everything that the result depends on; blocks of another key are thrown away.
#[derive(Debug)]
pub struct Checkpoint {
    folder: Option<PathBuf>,
}

const KEY: &str = "key";

impl Checkpoint {
    /// Nothing is kept.
    pub fn none() -> Self {
        Checkpoint { folder: None }
    }

    /// Opens or makes the folder.
    pub fn open(folder: &Path, key: &str) -> std::io::Result<Self> {
        let known = std::fs::read_to_string(folder.join(KEY)).is_ok_and(|k| k == key);
        if !known {
            match std::fs::remove_dir_all(folder) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            std::fs::create_dir_all(folder)?;
            write(folder, KEY, key.as_bytes())?;
        }
        Ok(Checkpoint {
            folder: Some(folder.to_owned()),
        })
    }

    /// The state of a block, if it was finished. One that cannot be read counts as not finished.
    pub(super) fn load(&self, block: usize) -> Option<BlockState> {
        let bytes = std::fs::read(self.folder.as_ref()?.join(name(block))).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(state) => Some(state),
            Err(e) => {
                tracing::warn!(
                    "block {block} of the interrupted work cannot be read, it is done again: {e}"
                );
                None
            }
        }
    }

    pub(super) fn save(&self, block: usize, state: &BlockState) -> std::io::Result<()> {
        match &self.folder {
            Some(folder) => write(folder, &name(block), &serde_json::to_vec(state)?),
            None => Ok(()),
        }
    }

    /// Removes the folder: the work is done.
    pub fn remove(self) {
        if let Some(folder) = self.folder
            && let Err(e) = std::fs::remove_dir_all(&folder)
        {
            tracing::warn!("cannot remove {}: {e}", folder.display());
        }
    }
}

fn name(block: usize) -> String {
    format!("block_{block:03}.json")
}

/// Appears complete or not at all.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> BlockState {
        BlockState {
            integers: vec![(3, vec![-127, 0, 5])],
            steps: vec![],
            outcome: Outcome::default(),
        }
    }

    #[test]
    fn finished_blocks_come_back_under_the_same_key_only() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("work");
        Checkpoint::open(&folder, "a")
            .unwrap()
            .save(7, &state())
            .unwrap();
        let again = Checkpoint::open(&folder, "a").unwrap();
        assert_eq!(again.load(7), Some(state()));
        assert_eq!(again.load(6), None);
        assert_eq!(Checkpoint::open(&folder, "b").unwrap().load(7), None);
        Checkpoint::open(&folder, "b").unwrap().remove();
        assert!(!folder.exists());
        assert_eq!(Checkpoint::none().load(7), None);
    }

    #[test]
    fn a_damaged_block_is_done_again() {
        let home = tempfile::tempdir().unwrap();
        let kept = Checkpoint::open(home.path(), "a").unwrap();
        kept.save(1, &state()).unwrap();
        let file = home.path().join(name(1));
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(kept.load(1), None);
    }
}
