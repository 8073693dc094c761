//! Linear algebra of small, dense, symmetric systems: what the predictor needs, and no more.

use core::ops::{Index, IndexMut};

/// A matrix by rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    pub(super) fn zero(rows: usize, columns: usize) -> Self {
        Self { columns, values: vec![0.0; rows * columns] }
    }

    pub(super) fn from_fn(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let value = &value;
        let values = (0..rows).flat_map(|i| (0..columns).map(move |j| value(i, j))).collect();
        Self { columns, values }
    }

    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    pub(super) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// The product with a column.
    pub(super) fn times(&self, column: &[f64]) -> Vec<f64> {
        (0..self.rows()).map(|row| dot(self.row(row), column)).collect()
    }

    pub(super) fn add_to_diagonal(&mut self, value: f64) {
        for index in 0..self.rows() {
            self[(index, index)] += value;
        }
    }
}

impl Index<(usize, usize)> for Matrix {
    type Output = f64;

    fn index(&self, (row, column): (usize, usize)) -> &f64 {
        &self.values[row * self.columns + column]
    }
}

impl IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (row, column): (usize, usize)) -> &mut f64 {
        &mut self.values[row * self.columns + column]
    }
}

/// The sum of the products, in four strands: strict order of additions would keep the compiler from using vectors.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut strands = [0.0; 4];
    let (a4, a_rest) = a.as_chunks::<4>();
    let (b4, b_rest) = b[..a.len()].as_chunks::<4>();
    for (x, y) in a4.iter().zip(b4) {
        for lane in 0..4 {
            strands[lane] += x[lane] * y[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    strands.iter().sum::<f64>() + rest
}

/// Cholesky's factor `L` of a positive definite matrix `L·Lᵀ`.
#[derive(Clone, Debug)]
pub(super) struct Cholesky(Matrix);

impl Cholesky {
    /// Factors `matrix`, of which only the lower half is read.
    ///
    /// A pivot that rounding has made zero or negative is set to a tiny one: covariances of nearly equal points are
    /// positive definite only up to rounding.
    pub(super) fn new(mut matrix: Matrix) -> Self {
        let n = matrix.rows();
        for i in 0..n {
            for j in 0..=i {
                let (head, tail) = matrix.values.split_at_mut(i * n);
                let row_i = &mut tail[..n];
                if i == j {
                    let pivot = row_i[i] - dot(&row_i[..i], &row_i[..i]);
                    row_i[i] = pivot.max(TINY).sqrt();
                } else {
                    let row_j = &head[j * n..j * n + n];
                    row_i[j] = (row_i[j] - dot(&row_i[..j], &row_j[..j])) / row_j[j];
                }
            }
        }
        Self(matrix)
    }

    /// `x` with `L·x = right`.
    pub(super) fn forward(&self, right: &[f64]) -> Vec<f64> {
        let mut x = right.to_vec();
        for i in 0..x.len() {
            let row = self.0.row(i);
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
        x
    }

    /// `x` with `L·Lᵀ·x = right`.
    pub(super) fn solve(&self, right: &[f64]) -> Vec<f64> {
        let mut x = self.forward(right);
        for i in (0..x.len()).rev() {
            let row = self.0.row(i);
            x[i] /= row[i];
            let known = x[i];
            for (value, factor) in x[..i].iter_mut().zip(row) {
                *value -= factor * known;
            }
        }
        x
    }

    /// `L⁻ᵀ`, whose rows give entries of the inverse: `(L·Lᵀ)⁻¹ᵢⱼ` is the product of rows i and j.
    pub(super) fn inverse_factor(&self) -> Matrix {
        let n = self.0.rows();
        let mut inverse = Matrix::zero(n, n);
        for column in 0..n {
            let x = &mut inverse.values[column * n..(column + 1) * n];
            x[column] = 1.0 / self.0[(column, column)];
            for i in column + 1..n {
                let row = self.0.row(i);
                x[i] = -dot(&row[column..i], &x[column..i]) / row[i];
            }
        }
        inverse
    }

    /// The inverse of the matrix that was factored.
    pub(super) fn inverse(&self) -> Matrix {
        let factor = self.inverse_factor();
        let n = factor.rows();
        Matrix::from_fn(n, n, |i, j| {
            let from = i.max(j);
            dot(&factor.row(i)[from..], &factor.row(j)[from..])
        })
    }
}

/// Least pivot; the entries of all matrices here are between 1e-6 and 1e6.
const TINY: f64 = 1e-12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn positive_definite(n: usize, values: &[f64]) -> Matrix {
        let factor = Matrix::from_fn(n, n, |i, j| values[i * n + j]);
        let mut product = Matrix::from_fn(n, n, |i, j| dot(factor.row(i), factor.row(j)));
        product.add_to_diagonal(0.5);
        product
    }

    proptest! {
        #[test]
        fn a_solution_solves_and_the_inverse_inverts(
            values in proptest::collection::vec(-1.0..1.0_f64, 49), right in proptest::collection::vec(-5.0..5.0_f64, 7),
        ) {
            let matrix = positive_definite(7, &values);
            let factor = Cholesky::new(matrix.clone());
            let back = matrix.times(&factor.solve(&right));
            prop_assert!(back.iter().zip(&right).all(|(a, b)| (a - b).abs() < 1e-8), "{back:?} {right:?}");
            let inverse = factor.inverse();
            for i in 0..7 {
                let unit = matrix.times(inverse.row(i));
                prop_assert!(unit.iter().enumerate().all(|(j, v)| (v - f64::from(i == j)).abs() < 1e-8), "{unit:?}");
            }
        }
    }
}
