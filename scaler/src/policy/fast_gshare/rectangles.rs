//! Maximal rectangles (Jylänki, "A thousand ways to pack the bin", 2010) as FaST-GShare packs them: quota along x, SM share
//! along y, no rotation, best area fit.

/// Size of a GPU: thousandths of the time, and percent of the SMs.
const SIZE: (u32, u32) = (1_000, 100);

/// A rectangle: its corner and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rectangle {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl Rectangle {
    fn area(&self) -> u32 {
        self.width * self.height
    }

    fn right(&self) -> u32 {
        self.x + self.width
    }

    fn top(&self) -> u32 {
        self.y + self.height
    }

    fn meets(&self, other: &Self) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.top() && other.y < self.top()
    }

    fn holds(&self, other: &Self) -> bool {
        self.x <= other.x && self.y <= other.y && other.right() <= self.right() && other.top() <= self.top()
    }

    /// What is left of it around `item`: up to four rectangles, each as large as can be.
    fn around(&self, item: &Self) -> impl Iterator<Item = Self> {
        let (right, top) = (item.right().min(self.right()), item.top().min(self.top()));
        [
            Self { height: item.y.saturating_sub(self.y), ..*self },
            Self { y: top, height: self.top() - top, ..*self },
            Self { width: item.x.saturating_sub(self.x), ..*self },
            Self { x: right, width: self.right() - right, ..*self },
        ]
        .into_iter()
        .filter(|rest| rest.area() > 0)
    }
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bin {
    free: Vec<Rectangle>,
    used: u32,
}

impl Default for Bin {
    fn default() -> Self {
        Self { free: vec![Rectangle { x: 0, y: 0, width: SIZE.0, height: SIZE.1 }], used: 0 }
    }
}

impl Bin {
    /// Area that is taken.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Area that is not.
    pub(super) fn left(&self) -> u32 {
        (SIZE.0 * SIZE.1).saturating_sub(self.used)
    }

    /// Whether an item of this size has a place.
    pub(super) fn fits(&self, size: (u32, u32)) -> bool {
        self.best(size).is_some()
    }

    /// Puts in an item where it fits best; where, or nothing if it has no place.
    pub(super) fn insert(&mut self, (width, height): (u32, u32)) -> Option<Rectangle> {
        let Rectangle { x, y, .. } = self.best((width, height))?;
        let item = Rectangle { x, y, width, height };
        let (met, mut free): (Vec<_>, Vec<_>) = self.free.drain(..).partition(|free| free.meets(&item));
        free.extend(met.iter().flat_map(|free| free.around(&item)));
        free.sort_unstable();
        free.dedup();
        let is_maximal = |one: &Rectangle| !free.iter().any(|other| other != one && other.holds(one));
        self.free = free.iter().copied().filter(is_maximal).collect();
        self.used += item.area();
        Some(item)
    }

    /// The free rectangle that leaves the least area, then the least on its shorter side.
    fn best(&self, (width, height): (u32, u32)) -> Option<Rectangle> {
        let fits = |free: &&Rectangle| free.width >= width && free.height >= height;
        let left = |free: &&Rectangle| {
            (free.area() - width * height, (free.width - width).min(free.height - height), **free)
        };
        self.free.iter().filter(fits).min_by_key(left).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rectangle([x, y, width, height]: [u32; 4]) -> Rectangle {
        Rectangle { x, y, width, height }
    }

    fn sorted(rectangles: impl IntoIterator<Item = [u32; 4]>) -> Vec<Rectangle> {
        let mut sorted: Vec<_> = rectangles.into_iter().map(rectangle).collect();
        sorted.sort_unstable();
        sorted
    }

    /// Puts an item where it lies, wherever it would fit best.
    fn put(bin: &mut Bin, item: Rectangle) {
        let (met, mut free): (Vec<_>, Vec<_>) = bin.free.drain(..).partition(|free| free.meets(&item));
        free.extend(met.iter().flat_map(|free| free.around(&item)));
        free.sort_unstable();
        free.dedup();
        bin.free =
            free.iter().copied().filter(|one| !free.iter().any(|o| o != one && o.holds(one))).collect();
        bin.used += item.area();
    }

    /// The example of the authors' notebook: seven pods, the holes that they leave, an eighth and where it goes.
    #[test]
    fn the_published_example_comes_out_as_published() {
        let used = [
            [0, 0, 400, 12],
            [400, 0, 400, 24],
            [0, 24, 600, 12],
            [0, 12, 200, 12],
            [600, 24, 400, 24],
            [0, 36, 600, 12],
            [0, 48, 400, 12],
        ];
        let mut bin = Bin::default();
        for item in used {
            put(&mut bin, rectangle(item));
        }
        assert_eq!(
            bin.free,
            sorted([[200, 12, 200, 12], [800, 0, 200, 24], [0, 60, 1000, 40], [400, 48, 600, 52]])
        );
        assert_eq!(bin.insert((400, 48)), Some(rectangle([400, 48, 400, 48])));
        let after =
            [[200, 12, 200, 12], [800, 0, 200, 24], [0, 96, 1000, 4], [0, 60, 400, 40], [800, 48, 200, 52]];
        assert_eq!(bin.free, sorted(after));
    }

    /// Their example of a scheduler: eight pods on one GPU instead of four.
    #[test]
    fn eight_published_pods_find_room_on_one_gpu() {
        let mut bin = Bin::default();
        for size in [(600, 50), (600, 50), (400, 24), (400, 24), (400, 12), (400, 12), (400, 12), (400, 12)] {
            assert!(bin.insert(size).is_some(), "{size:?} in {bin:?}");
        }
        assert_eq!(bin.left(), 1_000 * 100 - 2 * 600 * 50 - 2 * 400 * 24 - 4 * 400 * 12);
    }

    proptest! {
        #[test]
        fn items_never_overlap_and_what_is_free_is_free(
            sizes in proptest::collection::vec((1u32..=10, 1u32..=10), 1..40)
        ) {
            let (mut bin, mut placed) = (Bin::default(), Vec::<Rectangle>::new());
            for (width, height) in sizes {
                let size = (width * 100, height * 10);
                let fits = bin.fits(size);
                let item = bin.insert(size);
                prop_assert_eq!(item.is_some(), fits);
                let Some(item) = item else { continue };
                prop_assert!(item.right() <= SIZE.0 && item.top() <= SIZE.1);
                prop_assert!(placed.iter().all(|other| !other.meets(&item)), "{:?} in {:?}", item, placed);
                placed.push(item);
                prop_assert!(bin.free.iter().all(|free| placed.iter().all(|item| !item.meets(free))));
            }
            // What is not taken is free: every cell of the grid is in one or the other.
            for x in (0..SIZE.0).step_by(100) {
                for y in (0..SIZE.1).step_by(10) {
                    let cell = rectangle([x, y, 100, 10]);
                    let taken = placed.iter().any(|item| item.holds(&cell));
                    prop_assert_eq!(taken, !bin.free.iter().any(|free| free.holds(&cell)));
                }
            }
        }
    }
}
