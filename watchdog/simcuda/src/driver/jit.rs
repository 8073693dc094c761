//! The linker: it gives all text that it was given as one text. Machine code beside it is left out: a kernel that calls
//! into it takes time alone.

use std::sync::Mutex;

use super::fatbin;
use super::state::{driver, lock};
use super::{CudaError, Handle, In, Out, Result, Text, driver};

/// Kinds of input of the interface (`CUjitInputType`).
mod kind {
    pub(super) const CUBIN: u32 = 0;
    pub(super) const PTX: u32 = 1;
    pub(super) const FAT_BINARY: u32 = 2;
    pub(super) const OBJECT: u32 = 3;
    pub(super) const LIBRARY: u32 = 4;
}

/// A link that is going on.
#[derive(Debug, Default)]
pub(super) struct Linking {
    text: Mutex<String>,
    /// The first image of machine code that could be loaded.
    image: Mutex<Option<Vec<u8>>>,
    /// The result, kept until the link is destroyed.
    done: Mutex<Option<Vec<u8>>>,
}

impl Linking {
    fn add(&self, kind: u32, bytes: &[u8]) -> Result {
        match kind {
            kind::PTX => self.add_text(text(bytes)?),
            kind::FAT_BINARY => {
                if !fatbin::is_whole(bytes) {
                    return Err(CudaError::INVALID_IMAGE);
                }
                let start = In::from_address(bytes.as_ptr().expose_provenance());
                match fatbin::ptx(start, driver()?.device(0)?.capability)? {
                    Some(text) => self.add_text(&text),
                    None => self.add_image(bytes),
                }
            }
            kind::CUBIN | kind::OBJECT => self.add_image(bytes),
            kind::LIBRARY => {}
            _ => return Err(CudaError::NOT_SUPPORTED),
        }
        Ok(())
    }

    fn add_text(&self, text: &str) {
        let mut all = lock(&self.text);
        all.push_str(text);
        all.push('\n');
    }

    fn add_image(&self, bytes: &[u8]) {
        lock(&self.image).get_or_insert_with(|| bytes.to_vec());
    }

    /// The text, or machine code where there is no text.
    fn result(&self) -> Vec<u8> {
        let text = lock(&self.text).clone();
        match lock(&self.image).clone() {
            Some(image) if text.is_empty() => image,
            _ => [text.as_bytes(), &[0]].concat(),
        }
    }
}

/// The text in `bytes`, which may or may not end in a zero.
fn text(bytes: &[u8]) -> Result<&str> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    str::from_utf8(&bytes[..end]).map_err(|_| CudaError::INVALID_PTX)
}

driver! {
    fn [cuLinkCreate cuLinkCreate_v2] (_count: u32, _options: In<u32>, _values: In<usize>, out: Out<Handle>) {
        driver()?.current()?;
        out.set(driver()?.links.add(Linking::default()))
    }

    fn [cuLinkAddData cuLinkAddData_v2] (
        link: Handle, kind: u32, data: In<u8>, size: usize, _name: Text, _count: u32, _options: In<u32>,
        _values: In<usize>,
    ) {
        let bytes = (0..size).map(|at| data.at(at)).collect::<Result<Vec<u8>>>()?;
        driver()?.links.get(link)?.add(kind, &bytes)
    }

    fn [cuLinkAddFile cuLinkAddFile_v2] (
        link: Handle, kind: u32, path: Text, _count: u32, _options: In<u32>, _values: In<usize>,
    ) {
        let bytes = std::fs::read(path.get()?).map_err(|_| CudaError::FILE_NOT_FOUND)?;
        driver()?.links.get(link)?.add(kind, &bytes)
    }

    fn [cuLinkComplete] (link: Handle, image: Out<*const u8>, size: Out<usize>) {
        let link = driver()?.links.get(link)?;
        let mut done = lock(&link.done);
        let result = done.insert(link.result());
        image.set(result.as_ptr())?;
        size.set_if_wanted(result.len());
        Ok(())
    }

    fn [cuLinkDestroy] (link: Handle) {
        driver()?.links.remove(link).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_joined_and_machine_code_beside_them_is_left_out() {
        let link = Linking::default();
        link.add(kind::LIBRARY, b"!<arch>\n").unwrap();
        link.add(kind::CUBIN, b"\x7fELF").unwrap();
        link.add(kind::PTX, b".version 7.0\0beyond").unwrap();
        link.add(kind::PTX, b"// more").unwrap();
        assert_eq!(link.result(), b".version 7.0\n// more\n\0");
        assert_eq!(link.add(kind::PTX, b"\xff"), Err(CudaError::INVALID_PTX));
        assert_eq!(link.add(kind::FAT_BINARY, b"\x50\xed\x55\xba"), Err(CudaError::INVALID_IMAGE));
    }

    #[test]
    fn machine_code_alone_is_the_result_as_it_is() {
        let link = Linking::default();
        link.add(kind::CUBIN, b"\x7fELF one").unwrap();
        link.add(kind::OBJECT, b"\x7fELF two").unwrap();
        assert_eq!(link.result(), b"\x7fELF one");
        assert_eq!(link.add(5, b"BC"), Err(CudaError::NOT_SUPPORTED));
    }
}
