//! The rows of one GPU: where a share fits, and what a binding occupies there.
//!
//! Knows widths and quotas only; memory and the choice among GPUs are the ledger's.
//!
//! ```text
//!         time ──────────────────►
//!  SMs   ┌──────────┬─────┬───────┐
//!   │    │ a  60×50 │ b 40×20 .....│  row 0, 60 % wide: b leaves a strip of 20 % that nobody can use
//!   │    ├──────┬───┴─────┴───────┤
//!   ▼    │ c 30×30 ...............│  row 1, 30 % wide
//!        ├──────┴─────────────────┤
//!        │ .......................│  slack: 10 % that no row has
//!        └────────────────────────┘
//! ```

use std::collections::BTreeMap;

use super::Sharing;
use crate::binding::Binding;
use crate::share::Share;
use crate::units::{Area, Quota, SmShare};

/// All of a GPU's streaming multiprocessors, in percent.
const WIDTH: u32 = 100;

/// What the members of one row sum to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    /// Its widest member's SM share in percent, 0 while it has none.
    width: u32,
    /// Parts per million of the time, as the sum of quotas.
    pub(super) floors: u32,
    pub(super) grants: u32,
    /// The larger of floor and grant: a parked binding keeps its claim.
    held: u32,
}

impl Row {
    fn add(&mut self, width: u32, floor: Quota, grant: Quota) {
        self.width = self.width.max(width);
        self.floors += floor.ppm();
        self.grants += grant.ppm();
        self.held += grant.max(floor).ppm();
    }

    fn absorb(&mut self, other: Self) {
        self.width = self.width.max(other.width);
        self.floors += other.floors;
        self.grants += other.grants;
        self.held += other.held;
    }
}

/// A row that is to take in the members of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) from: u32,
    pub(super) into: u32,
}

/// All rows of one GPU.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    sharing: Sharing,
    rows: BTreeMap<u32, Row>,
}

impl Rows {
    /// The rows that `bindings`, all on one GPU, form.
    pub(super) fn of<'a>(sharing: Sharing, bindings: impl Iterator<Item = &'a Binding>) -> Self {
        let mut rows = Self { sharing, rows: BTreeMap::new() };
        for binding in bindings {
            let width = rows.wanted(binding.share.sm);
            let row = rows.rows.entry(binding.row).or_default();
            row.add(width, binding.share.floor, binding.grant);
        }
        rows
    }

    /// The rows, by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// Sum of the widths, in percent.
    pub(super) fn width(&self) -> u32 {
        self.iter().map(|row| row.width).sum()
    }

    /// The row that a new share goes to: one of its own while there is width, so that it has nobody to wait for, else
    /// the one that widens least, then the narrowest, then the one with the most time left.
    pub(super) fn fit(&self, share: &Share) -> Option<u32> {
        if self.width() + self.wanted(share.sm) <= WIDTH {
            return (0..u32::MAX).find(|index| !self.rows.contains_key(index));
        }
        self.rows
            .iter()
            .filter(|&(&index, _)| self.admits(index, share))
            .min_by_key(|(_, row)| (self.growth(row, share), row.width, row.floors))
            .map(|(&index, _)| index)
    }

    /// Whether `share` can be one more member of row `index`, which need not exist yet.
    pub(super) fn admits(&self, index: u32, share: &Share) -> bool {
        let row = self.rows.get(&index).copied().unwrap_or_default();
        row.floors + share.floor.ppm() <= Quota::WHOLE.ppm()
            && self.width() + self.growth(&row, share) <= WIDTH
    }

    /// Merges after which `share` fits, the fewest that a greedy choice finds; none if it finds no way.
    ///
    /// Bindings get rows of their own while there is width, so many small ones leave none to a wide one although most of
    /// their time is unsold. Two rows whose floors fit into one give the narrower one's width back.
    pub(super) fn merges_for(&self, share: &Share) -> Option<Vec<Merge>> {
        let (mut rows, mut merges) = (self.clone(), Vec::new());
        while rows.fit(share).is_none() {
            let merge = rows.cheapest_merge()?;
            rows.merge(merge);
            merges.push(merge);
        }
        Some(merges)
    }

    /// What `binding` occupies of the GPU's SMs and time at `quota`: the width of its row, since nobody else runs beside
    /// it there.
    pub(super) fn occupied(&self, binding: &Binding, quota: Quota) -> Area {
        let width = self.rows.get(&binding.row).map_or(WIDTH, |row| row.width);
        u8::try_from(width)
            .ok()
            .and_then(|width| SmShare::from_percent(width).ok())
            .map_or(Area::GPU, |width| Area::of_time(width, quota))
    }

    /// The largest area that one new share could have: in a row of its own, or in one that takes all of the slack.
    pub(super) fn largest_hole(&self) -> Area {
        let slack = WIDTH.saturating_sub(self.width());
        let hole = |width: u32, held: u32| {
            let left = Quota::from_ppm(Quota::WHOLE.ppm().saturating_sub(held)).unwrap_or_default();
            u8::try_from(width)
                .ok()
                .and_then(|width| SmShare::from_percent(width).ok())
                .map_or(Area::ZERO, |width| Area::of_time(width, left))
        };
        let in_rows = self.iter().map(|row| hole(row.width + slack, row.held));
        in_rows.chain([hole(slack, 0)]).max().unwrap_or_default()
    }

    /// Width that a share needs: without the multi-process service always all.
    fn wanted(&self, sm: SmShare) -> u32 {
        match self.sharing {
            Sharing::Mps => sm.percent().into(),
            Sharing::Exclusive => WIDTH,
        }
    }

    fn growth(&self, row: &Row, share: &Share) -> u32 {
        self.wanted(share.sm).saturating_sub(row.width)
    }

    /// Of all pairs whose floors fit into one row, the one that wastes the least area, then gives back the most width.
    fn cheapest_merge(&self) -> Option<Merge> {
        let pairs = self.rows.iter().flat_map(|(&from, narrow)| {
            let others = self.rows.iter().filter(move |&(&into, _)| into != from);
            others.filter_map(move |(&into, wide)| {
                let is_sound =
                    narrow.width <= wide.width && narrow.floors + wide.floors <= Quota::WHOLE.ppm();
                let waste = u64::from(wide.width - narrow.width.min(wide.width)) * u64::from(narrow.floors);
                is_sound.then_some((waste, WIDTH - narrow.width, Merge { from, into }))
            })
        });
        pairs
            .min_by_key(|&(waste, kept, merge)| (waste, kept, merge.from, merge.into))
            .map(|(.., merge)| merge)
    }

    pub(super) fn merge(&mut self, Merge { from, into }: Merge) {
        if let Some(row) = self.rows.remove(&from) {
            self.rows.entry(into).or_default().absorb(row);
        }
    }
}
