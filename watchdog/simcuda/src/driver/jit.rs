//! The linker: it takes PTX, and gives all that it was given as one text. There is no machine code here.

use std::ffi::{CString, c_char};
use std::sync::Mutex;

use super::state::{driver, lock};
use super::{CudaError, Handle, In, Out, Result, Text, driver};

/// Input kind of the interface: PTX text.
const PTX: u32 = 1;

/// A link that is going on.
#[derive(Debug, Default)]
pub(super) struct Linking {
    text: Mutex<String>,
    /// The result, kept until the link is destroyed.
    done: Mutex<Option<CString>>,
}

fn add(link: Handle, kind: u32, text: &str) -> Result {
    if kind != PTX {
        return Err(CudaError::NOT_SUPPORTED);
    }
    let link = driver()?.links.get(link)?;
    let mut all = lock(&link.text);
    all.push_str(text);
    all.push('\n');
    Ok(())
}

/// The text of `size` bytes at `data`, which may or may not end in a zero.
fn read(data: In<u8>, size: usize) -> Result<String> {
    let bytes = (0..size).map(|at| data.at(at)).collect::<Result<Vec<u8>>>()?;
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(size);
    String::from_utf8(bytes[..end].to_vec()).map_err(|_| CudaError::INVALID_PTX)
}

driver! {
    fn [cuLinkCreate_v2] (_count: u32, _options: In<u32>, _values: In<usize>, out: Out<Handle>) {
        driver()?.current()?;
        out.set(driver()?.links.add(Linking::default()))
    }

    fn [cuLinkAddData_v2] (
        link: Handle, kind: u32, data: In<u8>, size: usize, _name: Text, _count: u32, _options: In<u32>,
        _values: In<usize>,
    ) {
        add(link, kind, &read(data, size)?)
    }

    fn [cuLinkAddFile_v2] (
        link: Handle, kind: u32, path: Text, _count: u32, _options: In<u32>, _values: In<usize>,
    ) {
        let text = std::fs::read_to_string(path.get()?).map_err(|_| CudaError::FILE_NOT_FOUND)?;
        add(link, kind, &text)
    }

    fn [cuLinkComplete] (link: Handle, image: Out<*const c_char>, size: Out<usize>) {
        let link = driver()?.links.get(link)?;
        let text = CString::new(lock(&link.text).clone()).map_err(|_| CudaError::INVALID_PTX)?;
        let mut done = lock(&link.done);
        let text = done.insert(text);
        image.set(text.as_ptr())?;
        size.set_if_wanted(text.as_bytes_with_nul().len());
        Ok(())
    }

    fn [cuLinkDestroy] (link: Handle) {
        driver()?.links.remove(link).map(|_| ())
    }
}
