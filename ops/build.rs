//! With the feature `cuda`: compiles `kernels/*.cu` by nvcc into images that the program carries.
//!
//! `NVCC` names the compiler, else `$CUDA_HOME/bin/nvcc`, else `nvcc` of the path. An image has code for the architectures of
//! `ACTLOOM_CUDA_ARCH`, `80,90` unless set, and PTX of the first, from which a driver makes code for any later one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["NVCC", "CUDA_HOME", "ACTLOOM_CUDA_ARCH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=kernels");
    let nvcc = env::var_os("NVCC").map(PathBuf::from).unwrap_or_else(|| match env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin/nvcc"),
        None => "nvcc".into(),
    });
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let architectures = env::var("ACTLOOM_CUDA_ARCH").unwrap_or_else(|_| "80,90".to_owned());
    let mut images = Vec::new();
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .unwrap_or_else(|e| panic!("cannot read `kernels`: {e}"))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    for source in sources {
        let image = out.join(source.file_stem().unwrap_or_default()).with_extension("fatbin");
        let mut command = Command::new(&nvcc);
        command.args(["-fatbin", "-std=c++17", "-O3", "-o"]).arg(&image).arg(&source);
        for (i, architecture) in architectures.split(',').map(str::trim).enumerate() {
            let code = format!("arch=compute_{architecture},code=");
            let ptx = if i == 0 { format!(",compute_{architecture}") } else { String::new() };
            command.arg("-gencode").arg(format!("{code}[sm_{architecture}{ptx}]"));
        }
        match command.output() {
            Ok(done) if done.status.success() => {}
            Ok(done) => panic!("{} of {}: {}", nvcc.display(), source.display(), String::from_utf8_lossy(&done.stderr)),
            Err(e) => panic!(
                "the feature `cuda` needs CUDA's compiler, and `{}` cannot be started: {e}; set NVCC or CUDA_HOME",
                nvcc.display()
            ),
        }
        // as aligned as nvcc's own programs have it
        images.push(format!(
            "    {{\n        #[repr(C, align(64))]\n        struct Aligned<T: ?Sized>(T);\n        const IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!({:?}));\n        &IMAGE.0\n    }},\n",
            image.display().to_string()
        ));
    }
    let list = format!("[\n{}]\n", images.concat());
    fs::write(out.join("kernels.rs"), list).unwrap_or_else(|e| panic!("cannot write the list of kernels: {e}"));
}
