//! Kernels that really compute, known by their names, so that a program's answers can be checked.

use super::memory::Allocations;

/// A kernel that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Routine {
    /// `vector_add(out, a, b, n)`.
    AddResultFirst,
    /// `vectorAdd(a, b, out, n)`.
    AddResultLast,
    /// `saxpy(n, a, x, y)`: y = a·x + y.
    Saxpy,
    /// `matmul(a, b, c, n)`: c = a·b for n × n matrices, row by row.
    Matmul,
}

/// A kernel reached beyond memory that it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IllegalAddress;

impl Routine {
    /// The routine behind a kernel's name.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "vector_add" => Some(Self::AddResultFirst),
            "vectorAdd" => Some(Self::AddResultLast),
            "saxpy" => Some(Self::Saxpy),
            "matmul" => Some(Self::Matmul),
            _ => None,
        }
    }

    /// Bytes of each parameter. A count may also be 8 bytes wide.
    pub(super) fn parameter_sizes(self) -> [usize; 4] {
        match self {
            Self::AddResultFirst | Self::AddResultLast | Self::Matmul => [8, 8, 8, 4],
            Self::Saxpy => [4, 4, 8, 8],
        }
    }

    /// Index of the parameter that is a count.
    pub(super) fn count_index(self) -> usize {
        if self == Self::Saxpy { 0 } else { 3 }
    }

    /// Computes. The arguments are those of the launch, widened.
    pub(super) fn run(self, arguments: [u64; 4], memory: &Allocations) -> Result<(), IllegalAddress> {
        let [first, second, third, fourth] = arguments;
        match self {
            Self::AddResultFirst => add(memory, first, [second, third], fourth),
            Self::AddResultLast => add(memory, third, [first, second], fourth),
            Self::Saxpy => {
                let (x, mut y) = (read(memory, third, first)?, read(memory, fourth, first)?);
                // A float argument is the low half of the widened value.
                let a = f32::from_bits(u32::try_from(second & 0xffff_ffff).unwrap_or_default());
                y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
                write(memory, fourth, &y)
            }
            Self::Matmul => {
                let square = fourth.checked_mul(fourth).ok_or(IllegalAddress)?;
                let (a, b) = (read(memory, first, square)?, read(memory, second, square)?);
                write(memory, third, &multiply(&a, &b, usize::try_from(fourth).map_err(|_| IllegalAddress)?))
            }
        }
    }
}

fn add(memory: &Allocations, out: u64, inputs: [u64; 2], count: u64) -> Result<(), IllegalAddress> {
    let [a, b] = inputs;
    let (a, b) = (read(memory, a, count)?, read(memory, b, count)?);
    let sums: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
    write(memory, out, &sums)
}

fn multiply(a: &[f32], b: &[f32], n: usize) -> Vec<f32> {
    let mut c = vec![0.0; n * n];
    for (row, out) in c.chunks_mut(n.max(1)).enumerate() {
        for (k, line) in b.chunks(n.max(1)).enumerate() {
            let factor = a[row * n + k];
            out.iter_mut().zip(line).for_each(|(out, value)| *out += factor * value);
        }
    }
    c
}

/// The address as one of this process, if all of the range is device memory and aligned for floats.
fn checked(memory: &Allocations, address: u64, count: usize) -> Result<usize, IllegalAddress> {
    let bytes = (count as u64).checked_mul(4).ok_or(IllegalAddress)?;
    if !address.is_multiple_of(4) || !memory.is_reachable(address, bytes) {
        return Err(IllegalAddress);
    }
    usize::try_from(address).map_err(|_| IllegalAddress)
}

fn read(memory: &Allocations, address: u64, count: u64) -> Result<Vec<f32>, IllegalAddress> {
    let count = usize::try_from(count).map_err(|_| IllegalAddress)?;
    let start = std::ptr::with_exposed_provenance::<f32>(checked(memory, address, count)?);
    // SAFETY: the range is mapped, since it is in the table of allocations, and aligned.
    Ok((0..count).map(|index| unsafe { start.add(index).read() }).collect())
}

fn write(memory: &Allocations, address: u64, values: &[f32]) -> Result<(), IllegalAddress> {
    let start = std::ptr::with_exposed_provenance_mut::<f32>(checked(memory, address, values.len())?);
    for (index, &value) in values.iter().enumerate() {
        // SAFETY: the range is mapped, since it is in the table of allocations, and aligned.
        unsafe { start.add(index).write(value) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_multiplied_row_by_column() {
        let product = multiply(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], 2);
        assert_eq!(product, [19.0, 22.0, 43.0, 50.0]);
    }

    #[test]
    fn memory_that_nobody_allocated_is_not_touched() {
        let memory = Allocations::default();
        let result = Routine::AddResultFirst.run([0x1000, 0x2000, 0x3000, 4], &memory);
        assert_eq!(result, Err(IllegalAddress));
    }
}
