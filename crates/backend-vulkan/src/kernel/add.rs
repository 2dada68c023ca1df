//! [`tensor::Op::Add`].

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// `output += input` for `rows` rows.
pub(crate) fn add(features: &Features, input: View, output: View, rows: usize) -> Dispatch {
    let kernel = kernel(features, "add", vec![]);
    let vectors = output.pitch() / 4;
    Dispatch {
        groups: [vectors.div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push: Push::default().address(input.address).address(output.address).number(vectors),
        reads: vec![input.address, output.address],
        writes: vec![output.address],
        bytes: (3 * 4 * rows * output.width) as u64,
        operations: (rows * output.width) as u64,
        label: format!("add {rows}×{}", output.width),
        ..Dispatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn rows_are_added() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let (rows, width) = (3, 70);
        let pitch = crate::kernel::pitch(width);
        let values = |offset: f32| (0..rows * pitch).map(|i| i as f32 + offset).collect::<Vec<f32>>();
        let input = lab.upload(bytemuck::cast_slice(&values(0.5))).unwrap();
        let output = lab.upload(bytemuck::cast_slice(&values(2.0))).unwrap();
        let view = |address| View { address, width };
        let dispatch = add(lab.features(), view(input.address), view(output.address), rows);
        lab.run(&[dispatch.clone(), dispatch]).unwrap();
        let found = lab.download(output, rows * pitch * 4).unwrap();
        let expected: Vec<f32> = (0..rows * pitch).map(|i| 3.0 * i as f32 + 3.0).collect();
        assert_eq!(bytemuck::cast_slice::<u8, f32>(&found), expected);
    }
}
