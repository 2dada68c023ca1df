//! NVIDIA's management library (NVML), if it is there: it comes with the driver and is loaded when it is needed.
//!
//! Source: NVML API Reference Guide.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::Arc;
use std::time::Duration;

use libloading::Library;

use super::meter::{Counter, Gauge, Meter, Unit};

const LIBRARY: &str = if cfg!(windows) { "nvml.dll" } else { "libnvidia-ml.so.1" };

/// The counter of energy is renewed about that often.
const RENEWAL: Duration = Duration::from_millis(100);

/// `NVML_TEMPERATURE_GPU`.
const TEMPERATURE_GPU: c_uint = 0;

/// `nvmlDevice_t`.
type Device = *mut c_void;

/// A GPU in the library, which is initialized as long as this lives.
pub(super) struct Nvml {
    library: Library,
    device: Device,
}

// SAFETY: NVML may be called from any thread, at the same time too; a device's handle is a name, valid for all of them.
unsafe impl Send for Nvml {}
// SAFETY: as above.
unsafe impl Sync for Nvml {}

impl Nvml {
    /// The GPU at an address of the PCI bus, as Linux writes it; without an address the first one.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn open(address: Option<&str>) -> Result<Nvml, String> {
        // SAFETY: NVIDIA's library, which runs no code when it is loaded that could break ours.
        let library = unsafe { Library::new(LIBRARY) };
        let library = library.map_err(|_| format!("`{LIBRARY}` can't be loaded, so NVML does not tell its energy"))?;
        // SAFETY: the type is that of the function.
        unsafe { call::<unsafe extern "C" fn() -> c_int>(&library, "nvmlInit_v2", |init| init()) }?;
        let mut nvml = Nvml { library, device: std::ptr::null_mut() };
        let device = &raw mut nvml.device;
        match address.and_then(|address| CString::new(address).ok()) {
            // SAFETY: the type is that of the function; it reads a string that ends and writes a handle.
            Some(address) => unsafe {
                type Find = unsafe extern "C" fn(*const c_char, *mut Device) -> c_int;
                let name = "nvmlDeviceGetHandleByPciBusId_v2";
                call::<Find>(&nvml.library, name, |find| find(address.as_ptr(), device))
            },
            // SAFETY: the type is that of the function; it writes a handle.
            None => unsafe {
                type Find = unsafe extern "C" fn(c_uint, *mut Device) -> c_int;
                call::<Find>(&nvml.library, "nvmlDeviceGetHandleByIndex_v2", |find| find(0, device))
            },
        }?;
        Ok(nvml)
    }

    /// Joules since the driver was loaded.
    fn joules(&self) -> Result<f64, String> {
        // SAFETY: the function takes a device and writes such a number.
        let millijoules: c_ulonglong = unsafe { self.number("nvmlDeviceGetTotalEnergyConsumption") }?;
        Ok(millijoules as f64 / 1e3)
    }

    fn watts(&self) -> Result<f64, String> {
        // SAFETY: the function takes a device and writes such a number.
        let milliwatts: c_uint = unsafe { self.number("nvmlDeviceGetPowerUsage") }?;
        Ok(f64::from(milliwatts) / 1e3)
    }

    /// What a function says of the device.
    ///
    /// # Safety
    /// The function of that name takes a device and where to write a `T`.
    unsafe fn number<T: Copy + Default>(&self, name: &str) -> Result<T, String> {
        let mut number = T::default();
        // SAFETY: the caller knows the function's type; the handle is valid, and there is room for a number.
        unsafe {
            call::<unsafe extern "C" fn(Device, *mut T) -> c_int>(&self.library, name, |read| {
                read(self.device, &raw mut number)
            })
        }?;
        Ok(number)
    }

    fn celsius(&self) -> Result<f64, String> {
        let mut celsius: c_uint = 0;
        type Read = unsafe extern "C" fn(Device, c_uint, *mut c_uint) -> c_int;
        // SAFETY: the type is that of the function; the handle is valid, and it writes a number.
        unsafe {
            let name = "nvmlDeviceGetTemperature";
            call::<Read>(&self.library, name, |read| read(self.device, TEMPERATURE_GPU, &raw mut celsius))
        }?;
        Ok(f64::from(celsius))
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: the type is that of the function, which ends what `nvmlInit_v2` began. That it fails changes nothing.
        let _ = unsafe { call::<unsafe extern "C" fn() -> c_int>(&self.library, "nvmlShutdown", |end| end()) };
    }
}

/// Calls a function and makes an error of what it returns.
///
/// # Safety
/// `F` is the type of the function of that name, and `call` keeps to what it asks for.
unsafe fn call<F: Copy>(library: &Library, name: &str, call: impl FnOnce(F) -> c_int) -> Result<(), String> {
    // SAFETY: the caller knows the function's type.
    let function = unsafe { library.get::<F>(name.as_bytes()) };
    let function = function.map_err(|_| format!("`{LIBRARY}` has no `{name}`"))?;
    match call(*function) {
        0 => Ok(()),
        code => Err(format!("`{name}` failed: {}", message(library, code))),
    }
}

fn message(library: &Library, code: c_int) -> String {
    type Describe = unsafe extern "C" fn(c_int) -> *const c_char;
    // SAFETY: the type is that of the function.
    let Ok(describe) = (unsafe { library.get::<Describe>(b"nvmlErrorString") }) else { return code.to_string() };
    // SAFETY: it takes any number.
    let text = unsafe { describe(code) };
    if text.is_null() {
        return code.to_string();
    }
    // SAFETY: a string that ends and stays as long as the library.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Counter and thermometer of a GPU. Where it does not count energy, its power is summed up.
///
/// # Errors
/// Why it tells neither.
pub(super) fn sensors(nvml: &Arc<Nvml>) -> Result<(Counter, Option<Gauge>), String> {
    type Read = fn(&Nvml) -> Result<f64, String>;
    let gauge = |read: Read| -> Gauge {
        let nvml = Arc::clone(nvml);
        Box::new(move || read(&nvml))
    };
    let (name, unit, read) = match nvml.joules() {
        Ok(_) => ("NVML", Unit::Joules { range: None }, Nvml::joules as Read),
        Err(_) => nvml.watts().map(|_| ("NVML, power", Unit::Watts, Nvml::watts as Read))?,
    };
    let thermometer = nvml.celsius().is_ok().then(|| gauge(Nvml::celsius));
    let meters = vec![Meter::new(unit, gauge(read))];
    Ok((Counter { name: name.into(), renewal: RENEWAL, meters }, thermometer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_it_gets_the_reason() {
        // With a card this finds the counter; without, it says what is missing.
        match Nvml::open(None) {
            Ok(nvml) => assert!(sensors(&Arc::new(nvml)).is_ok_and(|(counter, _)| counter.name.starts_with("NVML"))),
            Err(why) => assert!(why.contains(LIBRARY) || why.contains("nvml"), "{why}"),
        }
    }
}
