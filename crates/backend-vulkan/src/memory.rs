//! Device memory: a few large blocks, each one buffer, out of which everything is cut.
//!
//! Everything is decided when a program is loaded, so an arena only grows; it is freed as a whole.

use std::sync::Arc;

use ash::vk;
use tensor::BackendError;

use crate::context::Context;
use crate::features::DeviceKind;

/// Largest block that is asked for at once.
const BLOCK_MAX: u64 = 2 << 30;

/// Every allocation begins at a multiple of it: what any shader's pointer assumes, and a line of any cache.
pub(crate) const ALIGNMENT: u64 = 256;

/// What an arena is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Read and written by the device; mapped where the device shares the processor's memory.
    Device,
    /// Written by the processor, read by the device once.
    Upload,
    /// The same for many bytes that are kept for a moment only: memory that goes through the processor's caches is
    /// made and freed faster.
    Staging,
    /// Written by the device, read by the processor.
    Download,
    /// Addresses without memory, for dispatches that are made but never run.
    Nowhere,
}

/// A part of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// The block's buffer.
    pub(crate) buffer: vk::Buffer,
    /// Where it begins in the buffer.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// The device's address of the first byte.
    pub(crate) address: u64,
    /// The processor's address of the first byte, if mapped.
    mapped: Option<*mut u8>,
}

// SAFETY: a slice is an address; whoever uses it for access says why that is sound.
unsafe impl Send for Slice {}

impl Slice {
    /// The bytes as the processor sees them.
    ///
    /// # Safety
    /// The arena is alive, and the device does not use the slice meanwhile.
    pub(crate) unsafe fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: the mapping covers the slice, which nobody else has as long as the caller keeps the promise.
        self.mapped.map(|start| unsafe { std::slice::from_raw_parts_mut(start, self.size as usize) })
    }

    /// As a device has it that shares no memory with the processor.
    #[cfg(test)]
    pub(crate) fn unmapped(self) -> Slice {
        Slice { mapped: None, ..self }
    }

    /// The part from `offset` on.
    pub(crate) fn part(&self, offset: u64, size: u64) -> Slice {
        assert!(offset + size <= self.size, "{offset} + {size} of {}", self.size);
        Slice {
            buffer: self.buffer,
            offset: self.offset + offset,
            size,
            address: self.address + offset,
            // SAFETY: still inside of the mapping.
            mapped: self.mapped.map(|start| unsafe { start.add(offset as usize) }),
        }
    }
}

struct Block {
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    address: u64,
    mapped: Option<*mut u8>,
    size: u64,
    used: u64,
}

/// Blocks of one place.
pub(crate) struct Arena {
    context: Arc<Context>,
    place: Place,
    blocks: Vec<Block>,
    /// Bytes that are still to be asked for, as far as known: the size of the next block.
    expected: u64,
}

// SAFETY: the mapped addresses are only used through slices.
unsafe impl Send for Arena {}

impl Arena {
    /// An empty arena that will hold about `expected` bytes.
    pub(crate) fn new(context: &Arc<Context>, place: Place, expected: u64) -> Arena {
        Arena { context: context.clone(), place, blocks: Vec::new(), expected }
    }

    /// Cuts off `size` bytes. `what` is for the message if there is no room.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    pub(crate) fn allocate(&mut self, size: u64, what: &str) -> Result<Slice, BackendError> {
        let size = size.max(1).next_multiple_of(ALIGNMENT);
        let fits = |block: &Block| block.size - block.used >= size;
        let index = match self.blocks.iter().position(fits) {
            Some(index) => index,
            None => {
                let block = self.add_block(size, what)?;
                self.blocks.push(block);
                self.blocks.len() - 1
            }
        };
        self.expected = self.expected.saturating_sub(size);
        let block = &mut self.blocks[index];
        let offset = block.used;
        block.used += size;
        Ok(Slice {
            buffer: block.buffer,
            offset,
            size,
            address: block.address + offset,
            // SAFETY: `offset` is inside of the block.
            mapped: block.mapped.map(|start| unsafe { start.add(offset as usize) }),
        })
    }

    fn add_block(&self, size: u64, what: &str) -> Result<Block, BackendError> {
        let most = self.context.features().allocation_max;
        let wanted = self.expected.clamp(size, BLOCK_MAX.max(size)).next_multiple_of(ALIGNMENT);
        if self.place == Place::Nowhere {
            // No address is that of another allocation.
            let (buffer, memory, address) = (vk::Buffer::null(), vk::DeviceMemory::null(), ALIGNMENT + self.bytes());
            return Ok(Block { buffer, memory, address, mapped: None, size: wanted.min(most).max(size), used: 0 });
        }
        // A smaller block may still fit where a large one doesn't.
        let mut last = vk::Result::ERROR_OUT_OF_DEVICE_MEMORY;
        for bytes in [wanted.min(most), size] {
            for memory_type in self.memory_types() {
                if bytes < size {
                    continue;
                }
                match self.block(bytes, memory_type) {
                    Ok(block) => return Ok(block),
                    Err(error) => last = error,
                }
            }
        }
        match last {
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
            | vk::Result::ERROR_OUT_OF_HOST_MEMORY
            | vk::Result::ERROR_OUT_OF_POOL_MEMORY => Err(BackendError::OutOfMemory {
                device: self.context.features().name.clone(),
                what: what.into(),
                // What is still to come with it would not fit either.
                needed: size.max(self.expected),
                available: available(&self.context),
            }),
            error => Err(self.context.failure("an allocation", error)),
        }
    }

    /// Types of memory for the place, the best first.
    fn memory_types(&self) -> Vec<u32> {
        use vk::MemoryPropertyFlags as Flags;
        let shared = self.context.features().kind != DeviceKind::Discrete;
        let mapped = Flags::HOST_VISIBLE | Flags::HOST_COHERENT;
        let preferences = match (self.place, shared) {
            (Place::Device, true) => vec![Flags::DEVICE_LOCAL | mapped, Flags::DEVICE_LOCAL, mapped],
            (Place::Device, false) => vec![Flags::DEVICE_LOCAL],
            (Place::Upload, _) | (Place::Staging, true) => vec![mapped],
            (Place::Staging, false) | (Place::Download, _) => vec![mapped | Flags::HOST_CACHED, mapped],
            (Place::Nowhere, _) => vec![],
        };
        let memory = &self.context.memory;
        let mut types = Vec::new();
        for flags in preferences {
            let mut fitting: Vec<(u32, Flags)> = memory
                .memory_types_as_slice()
                .iter()
                .zip(0..)
                .filter(|(memory_type, _)| memory_type.property_flags.contains(flags))
                .map(|(memory_type, index)| (index, memory_type.property_flags))
                .collect();
            // The one with the fewest further properties: no mapped window of a card for what is never mapped, no
            // memory of the card for what the processor writes.
            fitting.sort_by_key(|(_, properties)| properties.as_raw().count_ones());
            types.extend(fitting.into_iter().map(|(index, _)| index));
        }
        let mut seen = Vec::new();
        types.retain(|index| {
            !seen.contains(index) && {
                seen.push(*index);
                true
            }
        });
        types
    }

    fn block(&self, size: u64, memory_type: u32) -> Result<Block, vk::Result> {
        self.context.faults.allocation()?;
        let device = &self.context.raw;
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let families = [self.context.queue.family, self.context.transfer.family];
        let mut info = vk::BufferCreateInfo::default().size(size).usage(usage);
        if families[0] != families[1] {
            info = info.sharing_mode(vk::SharingMode::CONCURRENT).queue_family_indices(&families);
        }
        let flags = self.context.memory.memory_types[memory_type as usize].property_flags;
        let mapped = flags.contains(vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT);
        // SAFETY: plain creation; what was created is destroyed again where a later step fails.
        unsafe {
            let buffer = device.create_buffer(&info, None)?;
            let undo = |error| {
                device.destroy_buffer(buffer, None);
                error
            };
            let needs = device.get_buffer_memory_requirements(buffer);
            if needs.memory_type_bits >> memory_type & 1 == 0 {
                return Err(undo(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY));
            }
            let mut address = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
            let allocate = vk::MemoryAllocateInfo::default()
                .allocation_size(needs.size)
                .memory_type_index(memory_type)
                .push_next(&mut address);
            let memory = device.allocate_memory(&allocate, None).map_err(undo)?;
            let undo = |error| {
                device.free_memory(memory, None);
                undo(error)
            };
            device.bind_buffer_memory(buffer, memory, 0).map_err(undo)?;
            let start = match mapped {
                true => Some(
                    device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()).map_err(undo)?.cast(),
                ),
                false => None,
            };
            let address = device.get_buffer_device_address(&vk::BufferDeviceAddressInfo::default().buffer(buffer));
            Ok(Block { buffer, memory, address, mapped: start, size, used: 0 })
        }
    }

    /// Bytes of all blocks.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.size).sum()
    }

    /// Whether blocks are taken from the device's own heaps, where there is room.
    pub(crate) fn is_local(&self) -> bool {
        let memory = &self.context.memory;
        let heap = |index: &u32| memory.memory_types[*index as usize].heap_index as usize;
        let first = self.memory_types().first().map(heap);
        first.is_some_and(|heap| memory.memory_heaps[heap].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
    }

    /// The blocks with the bytes in use of each, for clearing.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (vk::Buffer, u64)> {
        self.blocks.iter().map(|block| (block.buffer, block.used))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.context.is_hung() || self.place == Place::Nowhere {
            return;
        }
        for block in &self.blocks {
            // SAFETY: whoever drops an arena has waited for the device to be done with it.
            unsafe {
                self.context.raw.destroy_buffer(block.buffer, None);
                self.context.raw.free_memory(block.memory, None);
            }
        }
    }
}

/// Bytes of the device's own heaps that this process can still have.
pub(crate) fn available(context: &Context) -> u64 {
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut all = vk::PhysicalDeviceMemoryProperties2::default();
    if context.features().memory_budget {
        all = all.push_next(&mut budget);
    }
    // SAFETY: the device is of this instance and has the extension if it is asked for.
    unsafe { context.instance.raw.get_physical_device_memory_properties2(context.physical, &mut all) };
    let heaps = all.memory_properties;
    let free = |(index, heap): (usize, &vk::MemoryHeap)| match context.features().memory_budget {
        true => budget.heap_budget[index].saturating_sub(budget.heap_usage[index]).min(heap.size),
        // The system and others need some too.
        false => heap.size / 10 * 9,
    };
    let local = |heap: &vk::MemoryHeap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
    heaps.memory_heaps_as_slice().iter().enumerate().filter(|(_, heap)| local(heap)).map(free).sum()
}
