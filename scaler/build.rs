//! Rust from KEDA's protocol, and its description for reflection. The compiler is a crate, so that no `protoc` has to be
//! installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    #[cfg(feature = "serve")]
    protocol()?;
    Ok(())
}

#[cfg(feature = "serve")]
fn protocol() -> Result<(), Box<dyn std::error::Error>> {
    use prost::Message;

    let out = std::env::var_os("OUT_DIR").ok_or("cargo names no folder for what is made")?;
    let compiled = protox::compile(["proto/externalscaler.proto"], ["proto"])?;
    std::fs::write(std::path::Path::new(&out).join("externalscaler.bin"), compiled.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(compiled)?;
    Ok(())
}
