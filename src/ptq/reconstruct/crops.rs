//! Which parts of the bird's-eye-view maps are used: windows around positives.
//!
//! A convolutional network sees a window as a smaller scene, so nothing but the outermost cells tells the
//! difference, and nine tenths of a map are empty anyhow. Windows are aligned to the network's total stride.

/// A window's first cell: row (y), then column (x).
pub type Corner = [usize; 2];

/// The windows of one frame, at most `count`, those with most positives first.
///
/// `occupied` says for each cell of a map of `size` (rows, columns) whether a pillar lies there; `positives` are cells
/// of that map. A positive counts where it lies at least `margin` cells inside a window, and once only. Windows
/// without a positive follow by how much they hold; empty ones are left out.
pub fn choose(
    size: [usize; 2],
    occupied: &[bool],
    positives: &[Corner],
    window: Window,
    count: usize,
) -> Vec<Corner> {
    let stops = |length: usize| -> Vec<usize> {
        let last = length.saturating_sub(window.size) / window.align * window.align;
        let step = (window.size / 4 / window.align).max(1) * window.align;
        let mut stops: Vec<usize> = (0..=last).step_by(step).collect();
        if stops.last() != Some(&last) {
            stops.push(last);
        }
        stops
    };
    let mut open: Vec<Corner> = positives.to_vec();
    let mut candidates: Vec<(Corner, usize)> = Vec::new();
    for &y in &stops(size[0]) {
        for &x in &stops(size[1]) {
            let rows = y..(y + window.size).min(size[0]);
            let full: usize = rows
                .map(|row| {
                    let end = (x + window.size).min(size[1]);
                    let row = occupied.get(row * size[1] + x..row * size[1] + end);
                    row.unwrap_or(&[]).iter().filter(|o| **o).count()
                })
                .sum();
            if full > 0 {
                candidates.push(([y, x], full));
            }
        }
    }
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let inside = |corner: &Corner, cell: &Corner| window.holds(*corner, *cell);
        let best = candidates
            .iter()
            .enumerate()
            .max_by_key(|(i, (corner, full))| {
                let hits = open.iter().filter(|cell| inside(corner, cell)).count();
                (hits, *full, std::cmp::Reverse(*i))
            });
        let Some((index, &(corner, _))) = best else {
            break;
        };
        candidates.remove(index);
        open.retain(|cell| !window.holds(corner, *cell));
        chosen.push(corner);
    }
    chosen
}

/// The shape of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Rows and columns.
    pub size: usize,
    /// Corners are multiples of this.
    pub align: usize,
    /// Cells at each side whose context is cut off.
    pub margin: usize,
}

impl Window {
    fn holds(&self, corner: Corner, cell: Corner) -> bool {
        (0..2).all(|i| {
            cell[i] >= corner[i] + self.margin && cell[i] + self.margin < corner[i] + self.size
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window {
        size: 16,
        align: 4,
        margin: 2,
    };

    #[test]
    fn windows_go_where_the_positives_are_and_each_counts_once() {
        let mut occupied = vec![true; 64 * 64];
        occupied[0] = false;
        let positives = [[10, 10], [11, 11], [12, 9], [50, 50], [63, 63]];
        let corners = choose([64, 64], &occupied, &positives, WINDOW, 2);
        assert_eq!(corners.len(), 2);
        assert!(positives[..3].iter().all(|p| WINDOW.holds(corners[0], *p)));
        // The one at the map's edge has no context in any window.
        assert!(WINDOW.holds(corners[1], [50, 50]));
        assert!(corners.iter().flatten().all(|c| c % 4 == 0 && c + 16 <= 64));
    }

    #[test]
    fn without_positives_the_fullest_window_wins_and_empty_ones_never() {
        let mut occupied = vec![false; 64 * 64];
        assert!(choose([64, 64], &occupied, &[], WINDOW, 3).is_empty());
        for i in 0..8 {
            occupied[(40 + i) * 64 + 44] = true;
        }
        let corners = choose([64, 64], &occupied, &[], WINDOW, 1);
        let [y, x] = corners[0];
        assert!(y <= 40 && y + 16 >= 48 && x <= 44 && x + 16 > 44);
    }

    #[test]
    fn a_window_larger_than_the_map_is_the_map() {
        assert_eq!(choose([8, 8], &[true; 64], &[], WINDOW, 5), [[0, 0]]);
    }
}
