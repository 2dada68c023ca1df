//! Compiles `shaders/*.comp` and `shaders/lab/*.comp` to SPIR-V, once for each variant that a shader declares, and
//! writes a table of them.
//!
//! A shader declares its variants in comments at its top. `//! for ACTIVATIONS in int8 f32` compiles it once with
//! `#define ACTIVATIONS_INT8` and once with `#define ACTIVATIONS_F32`; several such lines multiply. `{FORMAT}` in an
//! `#include "format/{FORMAT}.glsl"` stands for the variant's value. A variant is named `matvec.q4_0.int8`: the file's
//! name and the values in the order of the lines; `lab.` stands before the names of the lab's shaders.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use glslang::{
    Compiler, CompilerOptions, Shader, ShaderInput, ShaderSource, ShaderStage, SourceLanguage, SpirvVersion, Target,
    VulkanVersion,
};

/// Names that stand for several values.
const GROUPS: [(&str, &str); 2] = [
    ("BLOCKS", "q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k"),
    ("FORMATS", "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k"),
];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("shaders");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed={}", root.display());
    let mut table = String::from("pub(crate) static SHADERS: &[(&str, &[u8])] = &[\n");
    let engine = files(&root).into_iter().map(|file| (file, ""));
    let lab = files(&root.join("lab")).into_iter().map(|file| (file, "lab."));
    for (file, prefix) in engine.chain(lab) {
        let stem = prefix.to_owned() + file.file_stem().and_then(|stem| stem.to_str()).expect("a UTF-8 name");
        for variant in variants(&fs::read_to_string(&file).expect("a readable shader")) {
            let name = std::iter::once(&stem).chain(variant.iter().map(|(_, value)| value)).cloned();
            let name = name.collect::<Vec<_>>().join(".");
            let words = compile(&root, &file, &name, &variant);
            let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
            fs::write(out.join(format!("{name}.spv")), bytes).expect("a writable folder");
            writeln!(table, "    (\"{name}\", include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.spv\"))),").unwrap();
        }
    }
    table.push_str("];\n");
    fs::write(out.join("shaders.rs"), table).expect("a writable folder");
}

/// The shaders in a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of shaders").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "comp")).collect();
    files.sort();
    files
}

/// What a variant defines, in the order of the lines that declare it.
type Variant = Vec<(String, String)>;

/// Every combination of the values that the shader declares.
fn variants(source: &str) -> Vec<Variant> {
    let mut variants = vec![Vec::new()];
    for line in source.lines().filter_map(|line| line.strip_prefix("//! for ")) {
        let (key, values) = line.split_once(" in ").expect("`//! for KEY in VALUE …`");
        let values = values.split_whitespace().flat_map(|value| {
            let group = GROUPS.iter().find(|(name, _)| *name == value);
            group.map_or(value, |(_, values)| values).split_whitespace()
        });
        let values: Vec<&str> = values.collect();
        variants = variants
            .iter()
            .flat_map(|variant: &Variant| {
                values.iter().map(|value| [variant.as_slice(), &[(key.to_owned(), (*value).to_owned())]].concat())
            })
            .collect();
    }
    variants
}

fn compile(root: &Path, file: &Path, name: &str, variant: &Variant) -> Vec<u32> {
    let mut source = String::from("#version 460\n");
    for (key, value) in variant {
        writeln!(source, "#define {key}_{}", value.to_uppercase()).unwrap();
    }
    include(root, file, variant, &mut source);
    let compiler = Compiler::acquire().expect("glslang");
    let options = CompilerOptions {
        source_language: SourceLanguage::GLSL,
        target: Target::Vulkan { version: VulkanVersion::Vulkan1_3, spirv_version: SpirvVersion::SPIRV1_6 },
        version_profile: None,
        messages: glslang::ShaderMessage::DEFAULT,
    };
    let source = ShaderSource::from(source);
    let input = ShaderInput::new(&source, ShaderStage::Compute, &options, None::<&[(&str, Option<&str>)]>, None)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let shader = Shader::new(compiler, input).parse().unwrap_or_else(|error| panic!("{name}: {error:?}"));
    shader.compile().unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

/// Appends a file, its includes in their place. Line numbers of errors are those of the file, whose number in the order
/// of inclusion stands before the line.
fn include(root: &Path, file: &Path, variant: &Variant, into: &mut String) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let values: HashMap<&str, &str> = variant.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let label: u32 = file.file_stem().map_or(0, |stem| stem.len() as u32);
    writeln!(into, "#line 1 {label}").unwrap();
    for (number, line) in text.lines().enumerate() {
        let Some(path) = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) else {
            into.push_str(line);
            into.push('\n');
            continue;
        };
        let mut path = path.to_owned();
        for (key, value) in &values {
            path = path.replace(&format!("{{{key}}}"), value);
        }
        include(root, &root.join(path), variant, into);
        writeln!(into, "#line {} {label}", number + 2).unwrap();
    }
}
