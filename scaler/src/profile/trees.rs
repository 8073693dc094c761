//! Regression by boosted trees: many small trees, each fitted to what the ones before it still miss.
//!
//! Pure and without chance: the same rows give the same trees. Values that are missing are NaN and stand below all
//! others. The loss is Huber's, so that a few rows far off do not decide.

use super::kinship::real;

/// Trees, and how much of what it says each one counts.
const TREES: usize = 300;
const RATE: f64 = 0.06;
/// Deepest leaf, and fewest rows in one.
const DEPTH: usize = 6;
const LEAF: usize = 25;
/// Rows that say nothing, which a leaf counts as beside its own.
const RIDGE: f64 = 5.0;
/// Classes that each feature is cut into.
const CLASSES: usize = 48;
/// Where the loss turns from squared to absolute: what is missed by more is an outlier.
const OUTLIER: f64 = 0.02;

/// What a row consists of.
pub(super) type Row<const N: usize> = [f64; N];

/// Fitted trees.
#[derive(Clone, Debug)]
pub(super) struct Trees<const N: usize> {
    /// Upper ends of the classes of each feature.
    cuts: [Vec<f64>; N],
    trees: Vec<Vec<Node>>,
}

#[derive(Clone, Copy, Debug)]
enum Node {
    Leaf(f64),
    /// Rows whose class of the feature is at most so much go on at the next node, others at `above`.
    Split {
        feature: usize,
        class: u8,
        above: usize,
    },
}

impl<const N: usize> Trees<N> {
    pub(super) fn fit(rows: &[Row<N>], wanted: &[f64]) -> Self {
        let cuts = core::array::from_fn(|feature| cuts(rows.iter().map(|row| row[feature]).collect()));
        let mut trees = Self { cuts, trees: Vec::new() };
        let classes: Vec<_> = rows.iter().map(|row| trees.classes(row)).collect();
        let mut misses = wanted.to_vec();
        for _ in 0..TREES {
            let clipped: Vec<_> = misses.iter().map(|miss| miss.clamp(-OUTLIER, OUTLIER)).collect();
            let mut tree = Vec::new();
            let mut all: Vec<_> = (0..rows.len()).collect();
            grow(&mut tree, &classes, &clipped, &mut all, DEPTH);
            for (miss, classes) in misses.iter_mut().zip(&classes) {
                *miss -= walk(&tree, classes);
            }
            trees.trees.push(tree);
        }
        trees
    }

    pub(super) fn predict(&self, row: &Row<N>) -> f64 {
        let classes = self.classes(row);
        self.trees.iter().map(|tree| walk(tree, &classes)).sum()
    }

    fn classes(&self, row: &Row<N>) -> [u8; N] {
        core::array::from_fn(|feature| {
            let class = self.cuts[feature].partition_point(|&cut| cut < row[feature]);
            // Comparisons with NaN fail, so it is in class 0, which is for it alone.
            let known = usize::from(!row[feature].is_nan());
            u8::try_from(class + known).unwrap_or(u8::MAX)
        })
    }
}

/// Values that part the known ones into classes of about equal size.
fn cuts(mut values: Vec<f64>) -> Vec<f64> {
    values.retain(|value| !value.is_nan());
    values.sort_by(f64::total_cmp);
    let at = |class: usize| values.get(values.len() * class / CLASSES).copied();
    let mut cuts: Vec<_> = (1..CLASSES).filter_map(at).collect();
    cuts.dedup();
    cuts
}

/// What one split parts.
#[derive(Clone, Copy)]
struct Best {
    gain: f64,
    feature: usize,
    class: u8,
}

fn grow<const N: usize>(
    tree: &mut Vec<Node>,
    classes: &[[u8; N]],
    misses: &[f64],
    rows: &mut [usize],
    depth: usize,
) {
    let place = tree.len();
    let sum: f64 = rows.iter().map(|&row| misses[row]).sum();
    tree.push(Node::Leaf(RATE * sum / (real(rows.len()) + RIDGE)));
    if depth == 0 || rows.len() < 2 * LEAF {
        return;
    }
    let Some(best) = (0..N)
        .filter_map(|feature| split(classes, misses, rows, feature))
        .reduce(|a, b| if b.gain > a.gain { b } else { a })
    else {
        return;
    };
    let mut middle = 0;
    for index in 0..rows.len() {
        if classes[rows[index]][best.feature] <= best.class {
            rows.swap(index, middle);
            middle += 1;
        }
    }
    let (below, above) = rows.split_at_mut(middle);
    grow(tree, classes, misses, below, depth - 1);
    tree[place] = Node::Split { feature: best.feature, class: best.class, above: tree.len() };
    grow(tree, classes, misses, above, depth - 1);
}

/// The best split by one feature, `None` if none leaves enough rows on both sides or gains anything.
fn split<const N: usize>(
    classes: &[[u8; N]],
    misses: &[f64],
    rows: &[usize],
    feature: usize,
) -> Option<Best> {
    let mut counts = [0_usize; CLASSES + 2];
    let mut sums = [0.0; CLASSES + 2];
    for &row in rows {
        let class = usize::from(classes[row][feature]);
        counts[class] += 1;
        sums[class] += misses[row];
    }
    let total: f64 = sums.iter().sum();
    let score = |sum: f64, count: usize| sum * sum / (real(count) + RIDGE);
    let whole = score(total, rows.len());
    let (mut count, mut sum) = (0, 0.0);
    let mut best: Option<Best> = None;
    for class in 0..=CLASSES {
        count += counts[class];
        sum += sums[class];
        if count < LEAF || rows.len() - count < LEAF {
            continue;
        }
        let gain = score(sum, count) + score(total - sum, rows.len() - count) - whole;
        if gain > best.map_or(0.0, |best| best.gain) {
            best = Some(Best { gain, feature, class: u8::try_from(class).unwrap_or(u8::MAX) });
        }
    }
    best
}

fn walk<const N: usize>(tree: &[Node], classes: &[u8; N]) -> f64 {
    let mut place = 0;
    loop {
        match tree[place] {
            Node::Leaf(value) => return value,
            Node::Split { feature, class, above } => {
                place = if classes[feature] <= class { place + 1 } else { above };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_of_two_features_with_holes_is_learnt() {
        let truth = |row: &Row<2>| {
            if row[1].is_nan() {
                0.03
            } else if row[0] * row[1] > 0.0 {
                0.05
            } else {
                -0.05
            }
        };
        let rows: Vec<Row<2>> = (0..4000)
            .map(|i| {
                let (x, y) = (f64::from(i % 61) / 30.0 - 1.01, f64::from(i % 53) / 26.0 - 1.01);
                [x, if i % 7 == 0 { f64::NAN } else { y }]
            })
            .collect();
        let wanted: Vec<_> = rows.iter().map(truth).collect();
        let trees = Trees::fit(&rows, &wanted);
        let error: f64 = rows.iter().map(|row| (trees.predict(row) - truth(row)).abs()).sum::<f64>() / 4000.0;
        assert!(error < 0.003, "{error}");
    }

    #[test]
    fn rows_far_off_do_not_decide() {
        let rows: Vec<Row<1>> = (0..1000).map(|i| [f64::from(i % 10)]).collect();
        let wanted: Vec<_> = (0..1000).map(|i| if i % 20 == 0 { 50.0 } else { 0.01 }).collect();
        assert!((Trees::fit(&rows, &wanted).predict(&[5.0]) - 0.01).abs() < 0.02);
    }
}
