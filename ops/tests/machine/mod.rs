//! A device that is a processor: kernels run as their own source, compiled by a C++ compiler when the first test asks.
//!
//! Invariants: memory is the process's own, filled with NaN before it is lent, and an address that was not lent is found out;
//! what is asked for runs at once, so everything is in order.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use actloom_ops::gpu::driver::{Address, Arg, Driver, Element, Form, Launch, Matrix, Product, Recorded, Ticket};
use candle_core::{Result, bail};

/// The compiler, or `None` where tests that need it say that they are skipped.
///
/// # Panics
/// Where `ACTLOOM_EXTERNAL=1` says that there has to be one.
pub fn compiler() -> Option<String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if Command::new(&compiler).arg("--version").output().is_ok() {
        return Some(compiler);
    }
    assert!(std::env::var("ACTLOOM_EXTERNAL").is_err(), "there is no C++ compiler `{compiler}`");
    eprintln!("skipped: there is no C++ compiler `{compiler}`");
    None
}

/// Compiles a file of `kernels/emulated`.
pub fn compile(compiler: &str, source: &str, options: &[&str], to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulated").join(source);
    let all = ["-std=c++17", "-O2", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-DEMULATED"];
    let made = Command::new(compiler).args(all).args(options).arg("-o").arg(to).arg(source).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

type LaunchFn = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    c_uint,
    *const *mut c_void,
    *const usize,
    usize,
) -> c_int;
type ProductFn = unsafe extern "C" fn(
    c_int,
    *const c_void,
    usize,
    *const c_void,
    usize,
    *mut c_void,
    usize,
    c_int,
    usize,
    usize,
    usize,
    f32,
    c_int,
);

struct Library {
    launch: LaunchFn,
    product: ProductFn,
    /// The library's blocks run one at a time.
    turn: Mutex<()>,
}

fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let compiler = compiler()?;
            let folder = tempfile::tempdir().unwrap();
            let file: PathBuf = folder.path().join("kernels.so");
            compile(&compiler, "driver.cpp", &["-shared", "-fPIC"], &file);
            let name = CString::new(file.to_str().unwrap()).unwrap();
            // SAFETY: the library was just made from our source, and stays open for ever; symbols have these types there
            unsafe {
                let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
                assert!(!handle.is_null(), "cannot open the kernels");
                let symbol = |name: &str| {
                    let name = CString::new(name).unwrap();
                    let found = libc::dlsym(handle, name.as_ptr());
                    assert!(!found.is_null());
                    found
                };
                Some(Library {
                    launch: std::mem::transmute::<*mut c_void, LaunchFn>(symbol("emulated_launch")),
                    product: std::mem::transmute::<*mut c_void, ProductFn>(symbol("emulated_product")),
                    turn: Mutex::new(()),
                })
            }
        })
        .as_ref()
}

/// What was asked of a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    pub launches: BTreeMap<&'static str, usize>,
    pub products: usize,
    pub reserved: usize,
    /// Times that something recorded was asked for.
    pub replayed: usize,
    /// Copies to the host for which somebody waited when more had been asked for already.
    pub waited_late: usize,
}

impl Counts {
    fn asked(&self) -> usize {
        self.launches.values().sum::<usize>() + self.products + self.replayed
    }
}

/// What can be recorded.
#[derive(Clone, Debug)]
enum Work {
    Launch(&'static str, Launch, Vec<Arg>),
    Product(Product),
    Copy(Address, Address, usize),
}

/// Work that was recorded.
struct Played {
    work: Vec<Work>,
    kernels: &'static Library,
    counts: Arc<Mutex<Counts>>,
}

impl Recorded for Played {
    unsafe fn replay(&self) -> Result<()> {
        self.counts.lock().unwrap().replayed += 1;
        for work in &self.work {
            // SAFETY: the caller's promise
            unsafe { self.kernels.run(work)? };
        }
        Ok(())
    }
}

/// The device.
pub struct Machine {
    kernels: &'static Library,
    memory: Mutex<BTreeMap<u64, Vec<u64>>>,
    recording: Mutex<Option<Vec<Work>>>,
    pub counts: Arc<Mutex<Counts>>,
}

impl Machine {
    /// `None` where there is no C++ compiler.
    pub fn open() -> Option<Machine> {
        Some(Machine {
            kernels: library()?,
            memory: Mutex::default(),
            recording: Mutex::default(),
            counts: Arc::default(),
        })
    }

    /// Panics unless all of it was lent.
    fn check(&self, at: Address, bytes: usize) -> *mut u8 {
        let memory = self.memory.lock().unwrap();
        let found = memory.range(..=at.0).next_back();
        let inside = found.is_some_and(|(base, words)| at.0 + bytes as u64 <= base + 8 * words.len() as u64);
        assert!(inside, "{bytes} bytes at {at:?} are no memory of the device");
        at.0 as *mut u8
    }

    fn check_matrix(&self, m: &Matrix) {
        assert_eq!(m.at.0 % 16, 0, "a matrix begins at {:?}", m.at);
        self.check(m.at, m.bytes());
    }

    /// Runs it, or records it.
    unsafe fn ask(&self, work: Work) -> Result<()> {
        if let Some(recording) = &mut *self.recording.lock().unwrap() {
            recording.push(work);
            return Ok(());
        }
        // SAFETY: the caller's promise
        unsafe { self.kernels.run(&work) }
    }
}

impl Library {
    unsafe fn run(&self, work: &Work) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match work {
            // SAFETY: the caller's promise
            Work::Launch(kernel, launch, args) => unsafe { self.launch(kernel, *launch, args) },
            // SAFETY: as above
            Work::Product(product) => unsafe { self.multiply(product) },
            Work::Copy(to, from, bytes) => {
                // SAFETY: as above
                unsafe { std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, *bytes) };
                Ok(())
            }
        }
    }

    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        let mut words: Vec<_> = args.iter().map(|arg| arg.words()).collect();
        let sizes: Vec<usize> = words.iter().map(|(_, n)| *n).collect();
        let pointers: Vec<*mut c_void> = words.iter_mut().map(|(words, _)| words.as_mut_ptr().cast()).collect();
        let name = CString::new(kernel).unwrap();
        let (grid, block) = (launch.grid.as_ptr(), launch.block.as_ptr());
        let (pointers, n) = (pointers.as_ptr(), sizes.len());
        // SAFETY: the caller's promise
        let code = unsafe { (self.launch)(name.as_ptr(), grid, block, launch.shared, pointers, sizes.as_ptr(), n) };
        match code {
            0 => Ok(()),
            1 => bail!("there is no kernel `{kernel}`"),
            _ => bail!("the kernel `{kernel}` does not take arguments of {sizes:?} bytes"),
        }
    }

    unsafe fn multiply(&self, p: &Product) -> Result<()> {
        let (m, n, k) = p.sizes()?;
        let form = match p.form {
            Form::Rows => 0,
            Form::Back => 1,
            Form::Weight => 2,
        };
        let at = |m: &Matrix| m.at.0 as *mut c_void;
        let float = c_int::from(p.c.element == Element::F32);
        let (a, b, c) = (at(&p.a), at(&p.b), at(&p.c));
        let (lda, ldb, ldc) = (p.a.stride, p.b.stride, p.c.stride);
        // SAFETY: the caller's promise
        unsafe { (self.product)(form, a, lda, b, ldb, c, ldc, float, m, n, k, p.scale, c_int::from(p.add)) };
        Ok(())
    }
}

/// Bytes, and how much had been asked for when they were copied.
struct Ready(Vec<u8>, Arc<Mutex<Counts>>, usize);

impl Ticket for Ready {
    fn wait(self: Box<Self>) -> Result<Vec<u8>> {
        let mut counts = self.1.lock().unwrap();
        counts.waited_late += usize::from(counts.asked() > self.2);
        drop(counts);
        Ok(self.0)
    }
}

impl Driver for Machine {
    fn name(&self) -> String {
        "a processor that emulates the kernels".to_owned()
    }

    fn processors(&self) -> usize {
        6
    }

    fn free(&self) -> Result<(usize, usize)> {
        Ok((1 << 30, 1 << 30))
    }

    fn reserve(&self, bytes: usize) -> Result<Address> {
        // a multiple of 256 is found inside
        let words = vec![u64::MAX; bytes / 8 + 64];
        let base = words.as_ptr() as u64;
        let at = base.next_multiple_of(256);
        self.memory.lock().unwrap().insert(base, words);
        self.counts.lock().unwrap().reserved += 1;
        Ok(Address(at))
    }

    unsafe fn release(&self, at: Address) -> Result<()> {
        let mut memory = self.memory.lock().unwrap();
        let base = *memory.range(..=at.0).next_back().unwrap().0;
        memory.remove(&base);
        Ok(())
    }

    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        *self.counts.lock().unwrap().launches.entry(kernel).or_default() += 1;
        // SAFETY: the caller's promise
        unsafe { self.ask(Work::Launch(kernel, launch, args.to_vec())) }
    }

    unsafe fn product(&self, p: &Product) -> Result<()> {
        self.counts.lock().unwrap().products += 1;
        p.sizes()?;
        [&p.a, &p.b, &p.c].into_iter().for_each(|m| self.check_matrix(m));
        // SAFETY: sizes were checked against the matrices, and those against the memory
        unsafe { self.ask(Work::Product(*p)) }
    }

    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        // SAFETY: checked to be our memory
        unsafe { std::ptr::write_bytes(self.check(at, bytes), 0, bytes) };
        Ok(())
    }

    unsafe fn write(&self, to: Address, from: &[u8]) -> Result<()> {
        // SAFETY: checked to be our memory
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.check(to, from.len()), from.len()) };
        Ok(())
    }

    unsafe fn read(&self, from: Address, to: &mut [u8]) -> Result<()> {
        // SAFETY: checked to be our memory
        unsafe { std::ptr::copy_nonoverlapping(self.check(from, to.len()), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn read_later(&self, from: Address, bytes: usize) -> Result<Box<dyn Ticket>> {
        let mut out = vec![0; bytes];
        // SAFETY: the caller's promise
        unsafe { self.read(from, &mut out)? };
        let asked = self.counts.lock().unwrap().asked();
        Ok(Box::new(Ready(out, self.counts.clone(), asked)))
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.check(from, bytes);
        self.check(to, bytes);
        // SAFETY: checked to be our memory
        unsafe { self.ask(Work::Copy(to, from, bytes)) }
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recorded>> {
        *self.recording.lock().unwrap() = Some(Vec::new());
        let done = work();
        let recorded = self.recording.lock().unwrap().take().unwrap();
        done?;
        Ok(Box::new(Played { work: recorded, kernels: self.kernels, counts: self.counts.clone() }))
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}
