//! Zeroed memory whose start is aligned for vectors and large pages.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};

/// Large allocations are placed at multiples of this, so that the system can back them with 2 MiB pages: fewer
/// address translations while weights stream through.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 2 << 20;
const CACHE_LINE: usize = 64;

/// Numbers without padding for which all-zero bytes are a value.
///
/// # Safety
/// Any bit pattern of the type's size, all zeroes in particular, is a valid value.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: integers and floats take any bits.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

/// A fixed number of `T`, zeroed, aligned to a cache line or, when large, to a large page.
pub(crate) struct Aligned<T: Plain> {
    pointer: *mut T,
    length: usize,
    memory: Memory,
}

/// What to give back.
enum Memory {
    Heap(Layout),
    #[cfg(target_os = "linux")]
    Mapped {
        start: *mut libc::c_void,
        bytes: usize,
    },
}

// SAFETY: it owns its memory, and `T: Plain` is `Send + Sync`.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    /// `length` zeroes.
    ///
    /// # Panics
    /// If the size overflows; aborts if there is no memory.
    pub(crate) fn new(length: usize) -> Self {
        let bytes = length.checked_mul(size_of::<T>()).expect("size of a buffer overflows").max(1);
        #[cfg(target_os = "linux")]
        if bytes >= LARGE_PAGE
            && let Some((pointer, memory)) = map(bytes)
        {
            return Aligned { pointer: pointer.cast(), length, memory };
        }
        let layout = Layout::from_size_align(bytes, CACHE_LINE).expect("size of a buffer overflows");
        // SAFETY: the layout's size is at least 1.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            handle_alloc_error(layout);
        }
        Aligned { pointer: pointer.cast(), length, memory: Memory::Heap(layout) }
    }
}

/// Fresh zero pages, aligned to a large page. The advice has to come before the first touch, which is why the heap
/// won't do: it zeroes aligned memory by writing to it. Pages appear when a thread first writes them.
#[cfg(target_os = "linux")]
fn map(bytes: usize) -> Option<(*mut u8, Memory)> {
    let padded = bytes.next_multiple_of(LARGE_PAGE).checked_add(LARGE_PAGE)?;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: asks for new memory at any address; touches none that exists.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), padded, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let pointer = start.cast::<u8>().wrapping_add(start.cast::<u8>().align_offset(LARGE_PAGE));
    // Only whole large pages: a last one that is partly used would take its full size (140 MB in all for a 1B model).
    // SAFETY: the range lies inside of the new mapping; a refusal only costs speed.
    unsafe { libc::madvise(pointer.cast(), bytes / LARGE_PAGE * LARGE_PAGE, libc::MADV_HUGEPAGE) };
    Some((pointer, Memory::Mapped { start, bytes: padded }))
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        match self.memory {
            // SAFETY: allocated in `new` with this layout.
            Memory::Heap(layout) => unsafe { dealloc(self.pointer.cast(), layout) },
            // SAFETY: mapped in `map` with this length; nothing else refers to it.
            #[cfg(target_os = "linux")]
            Memory::Mapped { start, bytes } => unsafe {
                libc::munmap(start, bytes);
            },
        }
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `length` initialized (zeroed) elements, owned by `self`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.length) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.length) }
    }
}
