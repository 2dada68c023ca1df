use super::*;
use crate::features::DeviceKind;
use crate::lab::Lab;

/// One size: lavapipe takes seconds for some of these.
#[test]
fn every_pipeline_can_be_made() {
    let Some(lab) = Lab::for_tests() else { return };
    let software = lab.features().kind == DeviceKind::Software;
    let few = [DType::Q4_0, DType::Q4_K, DType::BF16].map(WeightFormat::Blocks);
    let formats = if software { few.to_vec() } else { formats() };
    let all = kernels(&lab.context.clone(), &SHAPES[1..2], &formats);
    for stem in ["matvec", "matvec_floats", "matmul", "norm", "head_prepare", "attention_decode", "sample_draw"] {
        assert!(all.iter().any(|kernel| self::stem(&kernel.shader) == stem), "{stem}");
    }
    for kernel in all.iter().filter(|kernel| !software || kernel.constants.get(1).is_none_or(|&columns| columns != 8)) {
        lab.pipelines.get(kernel).unwrap_or_else(|error| panic!("{kernel:?}: {error}"));
    }
}

#[test]
fn every_constant_has_a_name() {
    let Some(lab) = Lab::for_tests() else { return };
    let all = kernels(&lab.context, &SHAPES, &formats());
    for kernel in &all {
        assert!(constants(&kernel.shader).len() >= kernel.constants.len(), "{kernel:?}");
        let products = ["matvec", "matvec_floats", "trellis_matvec"].contains(&stem(&kernel.shader));
        assert_eq!(weights_per_iteration(kernel).is_some(), products, "{kernel:?}");
    }
    let find = |shader: &str, epilogue| {
        let found = all.iter().find(|kernel| kernel.shader == shader && kernel.constants[3] == epilogue);
        found.unwrap_or_else(|| panic!("{shader} with {epilogue}"))
    };
    let kernel = find("matvec.q4_k.f32", 1);
    assert_eq!(weights_per_iteration(kernel), Some(2 * kernel.constants[0] * 64));
}
