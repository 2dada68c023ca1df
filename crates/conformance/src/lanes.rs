//! Cooperative matrices as AMD's RDNA 3 has them, lane by lane, for hardware that tests don't run on: which lane holds
//! which element (AMD, "RDNA 3 Instruction Set Architecture", §7.9 WMMA; "How to accelerate AI applications on RDNA 3
//! using WMMA", gpuopen.com).
//!
//! The matrices of `V_WMMA_F32_16X16X16_F16` are 16×16. Lane `l` has all of row `l % 16` of A, or of column `l % 16` of
//! B: every 16 lanes have the same. The sums are divided: of column `l % 16`, lane `l` has every second row with
//! subgroups of 32 lanes and every fourth with 64, from row `l / 16` on.

/// Rows and columns of a matrix.
pub const SIZE: usize = 16;

/// What a matrix is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The left factor.
    A,
    /// The right factor.
    B,
    /// The sums.
    Accumulator,
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A row's elements are neighbours.
    RowMajor,
    /// A column's are.
    ColumnMajor,
}

/// A shared array. What nobody has written is NaN.
#[derive(Clone, Debug)]
pub struct Shared {
    /// All numbers in it.
    pub values: Vec<f32>,
    /// Numbers of an element of the array: what offsets and strides count.
    pub unit: usize,
}

impl Shared {
    /// An array of `len` elements of `unit` numbers.
    pub fn new(len: usize, unit: usize) -> Shared {
        Shared { values: vec![f32::NAN; len * unit], unit }
    }

    /// Where an element of a matrix is: `coopMatLoad`'s and `coopMatStore`'s offset and stride, then row and column.
    fn index(&self, (offset, stride, layout): (usize, usize, Layout), row: usize, column: usize) -> usize {
        match layout {
            Layout::RowMajor => (offset + row * stride) * self.unit + column,
            Layout::ColumnMajor => (offset + column * stride) * self.unit + row,
        }
    }
}

/// The registers of a subgroup that hold a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    role: Use,
    /// Of each lane: 16 numbers of a factor, 8 or 4 of the sums.
    lanes: Vec<Vec<f32>>,
}

impl Matrix {
    /// The matrix whose elements are given by row and column.
    pub fn of(role: Use, lanes: usize, element: impl Fn(usize, usize) -> f32) -> Matrix {
        let count = if role == Use::Accumulator { SIZE * SIZE / lanes } else { SIZE };
        let of_lane =
            |lane| (0..count).map(|index| place(role, lanes, lane, index)).map(|(r, c)| element(r, c)).collect();
        Matrix { role, lanes: (0..lanes).map(of_lane).collect() }
    }

    /// `coopMatLoad` with an offset, a stride and a layout.
    ///
    /// # Panics
    /// If an element lies outside of the array.
    pub fn load(role: Use, lanes: usize, shared: &Shared, at: (usize, usize, Layout)) -> Matrix {
        Matrix::of(role, lanes, |row, column| shared.values[shared.index(at, row, column)])
    }

    /// `coopMatStore` with an offset, a stride and a layout.
    ///
    /// # Panics
    /// If an element lies outside of the array.
    pub fn store(&self, shared: &mut Shared, at: (usize, usize, Layout)) {
        for (lane, values) in self.lanes.iter().enumerate() {
            for (index, &value) in values.iter().enumerate() {
                let (row, column) = place(self.role, self.lanes.len(), lane, index);
                let at = shared.index(at, row, column);
                shared.values[at] = value;
            }
        }
    }

    /// `coopMatMulAdd`: each lane's sums, from what the lanes of the first half of a factor hold.
    ///
    /// # Panics
    /// If the other lanes hold something else: the instruction's result is undefined then.
    pub fn multiply_add(a: &Matrix, b: &Matrix, sums: &Matrix) -> Matrix {
        assert_eq!((a.role, b.role, sums.role), (Use::A, Use::B, Use::Accumulator));
        for factor in [a, b] {
            let same = |lane: usize| factor.lanes[lane].iter().zip(&factor.lanes[lane % SIZE]);
            assert!((0..factor.lanes.len()).all(|lane| same(lane).all(|(x, y)| x.to_bits() == y.to_bits())));
        }
        let mut result = sums.clone();
        for (lane, values) in result.lanes.iter_mut().enumerate() {
            for (index, value) in values.iter_mut().enumerate() {
                let (row, column) = place(Use::Accumulator, sums.lanes.len(), lane, index);
                *value += a.lanes[row].iter().zip(&b.lanes[column]).map(|(x, y)| x * y).sum::<f32>();
            }
        }
        result
    }

    /// The product element by element, for which every lane has what it needs.
    pub fn times(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.role, other.role);
        let of_lane = |(x, y): (&Vec<f32>, &Vec<f32>)| x.iter().zip(y).map(|(x, y)| x * y).collect();
        Matrix { role: self.role, lanes: self.lanes.iter().zip(&other.lanes).map(of_lane).collect() }
    }
}

/// Row and column of a lane's number.
fn place(role: Use, lanes: usize, lane: usize, index: usize) -> (usize, usize) {
    match role {
        Use::A => (lane % SIZE, index),
        Use::B => (index, lane % SIZE),
        Use::Accumulator => (index * (lanes / SIZE) + lane / SIZE, lane % SIZE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_of_the_sums_is_in_one_register() {
        for lanes in [32, 64] {
            let mut seen = [[0; SIZE]; SIZE];
            let places = (0..lanes).flat_map(|lane| (0..256 / lanes).map(move |index| (lane, index)));
            for (lane, index) in places {
                let (row, column) = place(Use::Accumulator, lanes, lane, index);
                seen[row][column] += 1;
            }
            assert_eq!(seen, [[1; SIZE]; SIZE]);
        }
        // The first rows of lane 17, as the manual draws them.
        assert_eq!([0, 1].map(|index| place(Use::Accumulator, 32, 17, index)), [(1, 1), (3, 1)]);
        assert_eq!([0, 1].map(|index| place(Use::Accumulator, 64, 17, index)), [(1, 1), (5, 1)]);
    }

    #[test]
    fn loads_product_and_store_are_a_product() {
        let element = |seed: usize| move |r: usize, c: usize| ((r * 31 + c * 17 + seed) % 23) as f32 - 11.0;
        let (a, b) = (element(1), element(5));
        for (lanes, layout) in
            [(32, Layout::RowMajor), (64, Layout::RowMajor), (32, Layout::ColumnMajor), (64, Layout::ColumnMajor)]
        {
            let at = (1, 3, layout);
            let mut memory = [Shared::new(64, 8), Shared::new(64, 8), Shared::new(64, 8)];
            for (shared, element) in memory.iter_mut().zip([&a as &dyn Fn(usize, usize) -> f32, &b]) {
                for (row, column) in (0..256).map(|i| (i / SIZE, i % SIZE)) {
                    let index = shared.index(at, row, column);
                    shared.values[index] = element(row, column);
                }
            }
            let [left, right, result] = &mut memory;
            let left = Matrix::load(Use::A, lanes, left, at);
            let right = Matrix::load(Use::B, lanes, right, at);
            let sums = Matrix::of(Use::Accumulator, lanes, |row, _| row as f32);
            Matrix::multiply_add(&left, &right, &sums)
                .times(&Matrix::of(Use::Accumulator, lanes, |_, _| 2.0))
                .store(result, at);
            for (row, column) in (0..256).map(|i| (i / SIZE, i % SIZE)) {
                let expected = 2.0 * ((0..SIZE).map(|k| a(row, k) * b(k, column)).sum::<f32>() + row as f32);
                assert_eq!(result.values[result.index(at, row, column)], expected, "{lanes} {layout:?} {row} {column}");
            }
            assert_eq!(result.values.iter().filter(|value| !value.is_nan()).count(), 256);
        }
    }
}
