//! CUDA: one context, one stream of our own, kernels from the images made at build time, products by cuBLASLt.
//!
//! 1. `open` makes the device as candle wants it, so that candle's tensors and our addresses share one stream: event tracking
//!    off (it makes two events an allocation), pool memory kept (else freed memory goes back to the system at every wait).
//! 2. Kernels are looked up once by name, products planned once by shape.
//!
//! Invariants: nothing runs on another stream; products sum in float32 and reduce in float32, and the same shape takes the same
//! algorithm for the life of the process; what is recorded allocates nothing, and other threads wait meanwhile, for on the same
//! stream their work would be recorded, too.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use candle_core::cuda_backend::cudarc::cublaslt::{result as lt, sys as lts};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, result, sys};
use candle_core::{CudaDevice, Device, Result, bail};

use super::copies::{self, Copies};
use super::driver::{Address, Arg, Driver, Element, Form, Launch, Product, Recorded, STRUCT, Ticket};
use super::products::Choices;

/// The kernels, one image for each source: code for the architectures that `build.rs` names, and PTX for later ones.
const IMAGES: &[&[u8]] = &include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Algorithms that are asked for, and runs by which one is timed.
const ADVICE: usize = 8;
const TRIES: usize = 5;
/// The variable that names a file of choices; see [`super::products`].
const CHOICES: &str = "ACTLOOM_PRODUCTS";
/// Bytes that products may use to work in. NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Static and dynamic shared memory up to this needs no permission.
const SHARED_FREELY: u32 = 48 << 10;

pub(super) fn failed<T, E: std::fmt::Debug>(what: impl Fn() -> String, result: std::result::Result<T, E>) -> Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(error) => bail!("{}: {error:?}", what()),
    }
}

/// A kernel, and how much dynamic shared memory it is allowed.
#[derive(Clone, Copy)]
struct Function {
    function: sys::CUfunction,
    shared: u32,
}

/// What tells one plan of a product from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    form: Form,
    sizes: (usize, usize, usize),
    strides: (usize, usize, usize),
    out: Element,
    add: bool,
    /// Alignments of the three addresses, in bytes, 256 at most.
    aligned: [u32; 3],
}

impl Key {
    /// As a file names it.
    fn name(&self) -> String {
        let Key { form, sizes: (m, n, k), strides: (a, b, c), out, add, aligned: [x, y, z] } = self;
        let add = if *add { " added" } else { "" };
        format!("{form:?} {m}x{n}x{k}, rows {a} {b} {c} apart, aligned {x} {y} {z}, {out:?}{add}")
    }
}

struct Plan {
    product: lts::cublasLtMatmulDesc_t,
    /// In cuBLAS's order, which is column-major: the second factor first.
    first: lts::cublasLtMatrixLayout_t,
    second: lts::cublasLtMatrixLayout_t,
    out: lts::cublasLtMatrixLayout_t,
    /// The first is taken; the others stand in cuBLASLt's order, until they are tried.
    algorithms: Vec<lts::cublasLtMatmulAlgo_t>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `plan`, and nothing uses them any more
        unsafe {
            let _ = lt::destroy_matmul_desc(self.product);
            for layout in [self.first, self.second, self.out] {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

#[derive(Default)]
struct Known {
    functions: HashMap<&'static str, Function>,
    plans: HashMap<Key, Plan>,
    /// Algorithms that another run takes too, where somebody asked for that.
    choices: Option<Choices>,
}

/// The device.
pub struct Cuda {
    name: String,
    processors: usize,
    device: CudaDevice,
    stream: Arc<CudaStream>,
    modules: Vec<sys::CUmodule>,
    lt: lts::cublasLtHandle_t,
    workspace: sys::CUdeviceptr,
    known: Mutex<Known>,
    copies: Arc<Copies>,
    turns: Turns,
}

/// Whose turn it is: everybody's, or that of the thread that records.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<RwLock<()>>);

thread_local! {
    static RECORDS: Cell<bool> = const { Cell::new(false) };
}

impl Turns {
    /// Held while something is asked of the stream.
    pub(super) fn take(&self) -> Option<RwLockReadGuard<'_, ()>> {
        (!RECORDS.get()).then(|| self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something while no other thread asks for anything.
    fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Recording;
        impl Drop for Recording {
            fn drop(&mut self) {
                RECORDS.set(false);
            }
        }
        let _alone = self.0.write().unwrap_or_else(PoisonError::into_inner);
        RECORDS.set(true);
        let _recording = Recording;
        work()
    }
}

// SAFETY: handles of CUDA may be used from every thread; what is not synchronised inside CUDA is behind `known`
unsafe impl Send for Cuda {}
// SAFETY: as above
unsafe impl Sync for Cuda {}

/// Devices that are open; they stay so until the process ends.
static OPEN: Mutex<BTreeMap<usize, Arc<Cuda>>> = Mutex::new(BTreeMap::new());

/// The device of this number, opened once.
///
/// # Errors
/// As [`Cuda::open`].
pub fn open(ordinal: usize) -> Result<Arc<Cuda>> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&ordinal) {
        return Ok(device.clone());
    }
    let device = Arc::new(Cuda::open(ordinal)?);
    open.insert(ordinal, device.clone());
    Ok(device)
}

/// Whether there is a device of this number with the compute capability that the kernels need.
pub fn is_usable(ordinal: usize) -> bool {
    let major = || {
        result::init()?;
        let device = result::device::get(ordinal as i32)?;
        let major = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        // SAFETY: a device that is there
        unsafe { result::device::get_attribute(device, major) }
    };
    major().is_ok_and(|major: i32| major >= 8)
}

impl Cuda {
    /// The device of this number, counted from 0.
    ///
    /// # Errors
    /// What CUDA says where there is no driver, no such device, or one that the kernels are not for.
    pub fn open(ordinal: usize) -> Result<Cuda> {
        match result::init().and_then(|()| result::device::get_count()) {
            Ok(count) if (ordinal as i32) < count => {}
            Ok(1) => bail!("there is one device here, `cuda:0`"),
            Ok(count) => bail!("there are {count} devices here, counted from 0"),
            Err(error) => bail!("there is no driver or no GPU ({:?})", error.0),
        }
        // SAFETY: a number; 1 where there is no such library
        let version = unsafe { lts::cublasLtGetVersion() } as u64;
        if version < 10_000 {
            bail!("the library cublasLt of CUDA was not found: name its folder in CUDA_LAZY_PATH or LD_LIBRARY_PATH");
        }
        let Device::Cuda(device) = Device::new_cuda_with_stream(ordinal)? else {
            bail!("BUG: candle made another device than a CUDA device")
        };
        let stream = device.cuda_stream();
        let context = stream.context().clone();
        // SAFETY: everything runs on this one stream, so nothing has to wait for anything
        unsafe { context.disable_event_tracking() };
        let (major, minor) = failed(|| "the device's compute capability".to_owned(), context.compute_capability())?;
        let name = failed(|| "the device's name".to_owned(), context.name())?;
        if major < 8 {
            bail!(
                "{name} has compute capability {major}.{minor}, expected 8.0 or later: the kernels compute in bfloat16"
            );
        }
        let pools = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
        if context.attribute(pools).is_ok_and(|has| has > 0) {
            // candle's tensors come from it. SAFETY: the pool is the device's own; the attribute takes 64 bits
            unsafe {
                let pool =
                    failed(|| "the memory pool".to_owned(), result::device::get_default_mem_pool(context.cu_device()))?;
                let mut keep = u64::MAX;
                let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
                let set = result::mem_pool::set_attribute(pool, attribute, (&raw mut keep).cast());
                failed(|| "keeping the pool's memory".to_owned(), set)?;
            }
        }
        let load = |image: &&[u8]| {
            // SAFETY: an image that nvcc made
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            failed(|| format!("loading the kernels on {name}"), module)
        };
        let modules = IMAGES.iter().map(load).collect::<Result<_>>()?;
        let lt = failed(|| "starting cuBLASLt".to_owned(), lt::create_handle())?;
        // SAFETY: freed when the device is dropped
        let workspace = failed(|| "memory for products".to_owned(), unsafe { result::malloc_sync(WORKSPACE) })?;
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = failed(|| "the device's size".to_owned(), context.attribute(attribute))? as usize;
        let file = std::env::var_os(CHOICES).filter(|path| !path.is_empty());
        let choices = file.map(|path| Choices::open(path.into(), &name, version)).transpose()?;
        let name = format!("{name} (cuda:{ordinal}, compute capability {major}.{minor})");
        Ok(Cuda {
            name,
            processors,
            device,
            copies: Copies::new(stream.clone()),
            stream,
            modules,
            lt,
            workspace,
            known: Mutex::new(Known { choices, ..Known::default() }),
            turns: Turns::default(),
        })
    }

    /// The same device for candle's tensors: on the same stream.
    pub fn candle(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    fn bind(&self) -> Result<()> {
        failed(|| format!("using {}", self.name), self.stream.context().bind_to_thread())
    }

    /// A kernel that may use so much dynamic shared memory.
    fn function(&self, kernel: &'static str, shared: u32) -> Result<sys::CUfunction> {
        let mut known = self.known();
        let mut found = match known.functions.get(kernel) {
            Some(found) => *found,
            None => {
                let name = CString::new(kernel).map_err(candle_core::Error::wrap)?;
                // SAFETY: the modules live as long as the device
                let find = |module: &sys::CUmodule| unsafe { result::module::get_function(*module, name.clone()) }.ok();
                match self.modules.iter().find_map(find) {
                    Some(function) => Function { function, shared: SHARED_FREELY },
                    None => bail!("there is no kernel `{kernel}`"),
                }
            }
        };
        if shared > found.shared {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a module that lives as long as the device
            let set = unsafe { result::function::set_function_attribute(found.function, attribute, shared as i32) };
            failed(|| format!("{shared} bytes of shared memory for `{kernel}`"), set)?;
            found.shared = shared;
        }
        known.functions.insert(kernel, found);
        Ok(found.function)
    }

    fn plan(&self, key: Key) -> Result<Plan> {
        let what = || format!("planning the product {key:?}");
        let (m, n, k) = key.sizes;
        let bf16 = lts::cudaDataType::CUDA_R_16BF;
        let out = match key.out {
            Element::Bf16 => bf16,
            Element::F32 => lts::cudaDataType::CUDA_R_32F,
        };
        // column-major, c^T = b^T a^T: what is row-major (rows, columns) is (columns, rows) there
        let (stored_b, transposed_b) = if key.form == Form::Rows { ((k, n), true) } else { ((n, k), false) };
        let (stored_a, transposed_a) = if key.form == Form::Weight { ((m, k), true) } else { ((k, m), false) };
        let layout = |element, (rows, columns): (usize, usize), stride: usize| {
            failed(what, lt::create_matrix_layout(element, rows as u64, columns as u64, stride as i64))
        };
        let compute = lts::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = failed(what, lt::create_matmul_desc(compute, lts::cudaDataType::CUDA_R_32F))?;
        let (first, second) = (layout(bf16, stored_b, key.strides.1)?, layout(bf16, stored_a, key.strides.0)?);
        let out = layout(out, (n, m), key.strides.2)?;
        use lts::cublasLtMatmulDescAttributes_t as Of;
        use lts::cublasLtMatmulPreferenceAttributes_t as Prefer;
        // SAFETY: attributes have the sizes that cuBLASLt's reference gives
        unsafe {
            for (attribute, transposed) in
                [(Of::CUBLASLT_MATMUL_DESC_TRANSA, transposed_b), (Of::CUBLASLT_MATMUL_DESC_TRANSB, transposed_a)]
            {
                let operation = i32::from(transposed); // CUBLAS_OP_N, CUBLAS_OP_T
                failed(what, lt::set_matmul_desc_attribute(product, attribute, (&raw const operation).cast(), 4))?;
            }
            let preference = failed(what, lt::create_matmul_pref())?;
            let workspace = WORKSPACE as u64;
            // partial sums in float32 alone: CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
            let reductions = 2u32;
            let [c, first_at, second_at] = [key.aligned[2], key.aligned[1], key.aligned[0]];
            let settings: [(_, *const c_void, usize); 6] = [
                (Prefer::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8),
                (Prefer::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const reductions).cast(), 4),
                (Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const first_at).cast(), 4),
                (Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (&raw const second_at).cast(), 4),
                (Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (&raw const c).cast(), 4),
                (Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (&raw const c).cast(), 4),
            ];
            for (attribute, value, bytes) in settings {
                failed(what, lt::set_matmul_pref_attribute(preference, attribute, value, bytes))?;
            }
            // what the library advises, the best first
            let mut found: [lts::cublasLtMatmulHeuristicResult_t; ADVICE] = std::mem::zeroed();
            let mut count = 0;
            let of = (first, second, out);
            let (advice, wanted) = (found.as_mut_ptr(), ADVICE as i32);
            let asked = lts::cublasLtMatmulAlgoGetHeuristic(
                self.lt,
                product,
                of.0,
                of.1,
                of.2,
                of.2,
                preference,
                wanted,
                advice,
                &raw mut count,
            );
            failed(what, lt::destroy_matmul_pref(preference))?;
            failed(what, asked.result())?;
            let fine = |r: &&lts::cublasLtMatmulHeuristicResult_t| r.state.result().is_ok();
            let algorithms: Vec<_> = found.iter().take(count as usize).filter(fine).map(|r| r.algo).collect();
            if algorithms.is_empty() {
                bail!("cuBLASLt has no algorithm for the product {key:?}");
            }
            Ok(Plan { product, first, second, out, algorithms })
        }
    }

    /// Runs a product by one of its plan's algorithms.
    ///
    /// # Safety
    /// As [`Driver::product`].
    unsafe fn multiply(&self, p: &Product, plan: &Plan, algorithm: usize) -> Result<()> {
        let (scale, add) = (p.scale, f32::from(u8::from(p.add)));
        // SAFETY: the caller's promise; the plan is that of these sizes
        let done = unsafe {
            lt::matmul(
                self.lt,
                plan.product,
                (&raw const scale).cast(),
                (&raw const add).cast(),
                p.b.at.0 as *const c_void,
                plan.first,
                p.a.at.0 as *const c_void,
                plan.second,
                p.c.at.0 as *const c_void,
                plan.out,
                p.c.at.0 as *mut c_void,
                plan.out,
                &raw const plan.algorithms[algorithm],
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        };
        failed(|| format!("the product {p:?}"), done)
    }

    /// The algorithm of a product's plan that is fastest here; what the product adds to is as it was.
    ///
    /// # Safety
    /// As [`Driver::product`].
    unsafe fn fastest(&self, p: &Product, plan: &Plan) -> Result<usize> {
        let (what, stream) = (|| format!("timing the product {p:?}"), self.stream.cu_stream());
        let mut before = vec![0u8; p.c.bytes()];
        // SAFETY: the caller's promise; events are destroyed once
        unsafe {
            failed(what, result::memcpy_dtoh_async(&mut before, p.c.at.0, stream))?;
            failed(what, self.stream.synchronize())?;
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            let (begin, end) =
                (failed(what, result::event::create(flags))?, failed(what, result::event::create(flags))?);
            let mut best = (f32::INFINITY, 0);
            for algorithm in 0..plan.algorithms.len() {
                // the first run is no measurement; one that fails is none either
                let run = || -> Result<f32> {
                    self.multiply(p, plan, algorithm)?;
                    failed(what, result::event::record(begin, stream))?;
                    (0..TRIES).try_for_each(|_| self.multiply(p, plan, algorithm))?;
                    failed(what, result::event::record(end, stream))?;
                    failed(what, result::event::synchronize(end))?;
                    failed(what, result::event::elapsed(begin, end))
                };
                if let Ok(ms) = run()
                    && ms < best.0
                {
                    best = (ms, algorithm);
                }
            }
            let destroyed = [begin, end].map(|event| result::event::destroy(event));
            failed(what, result::memcpy_htod_async(p.c.at.0, &before, stream))?;
            failed(what, self.stream.synchronize())?;
            destroyed.into_iter().try_for_each(|done| failed(what, done))?;
            Ok(best.1)
        }
    }

    /// A plan whose first algorithm is the one to take: the one that was kept, or the fastest, which is kept then. Where nothing is
    /// kept, cuBLASLt's first advice.
    ///
    /// # Safety
    /// As [`Driver::product`].
    unsafe fn chosen(&self, p: &Product, key: Key, choices: Option<&mut Choices>) -> Result<Plan> {
        let mut plan = self.plan(key)?;
        let Some(choices) = choices else { return Ok(plan) };
        let name = key.name();
        match choices.get(&name) {
            Some(data) => plan.algorithms[0].data = data,
            // while something is recorded nothing can be timed
            None if RECORDS.get() => {}
            None => {
                // SAFETY: the caller's promise
                let fastest = unsafe { self.fastest(p, &plan)? };
                plan.algorithms.swap(0, fastest);
                choices.keep(name, plan.algorithms[0].data)?;
            }
        }
        plan.algorithms.truncate(1);
        Ok(plan)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let known = self.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        *known = Known::default();
        self.copies.clear();
        // SAFETY: nothing was asked for that has not run once the stream is idle, and nothing uses these any more
        unsafe {
            let _ = self.stream.synchronize();
            let _ = lt::destroy_handle(self.lt);
            let _ = result::free_sync(self.workspace);
            for module in &self.modules {
                let _ = result::module::unload(*module);
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The largest power of two, 256 at most, that divides an address.
fn alignment(at: Address) -> u32 {
    1 << at.0.trailing_zeros().min(8)
}

struct Graph(Mutex<CudaGraph>, Turns);

// SAFETY: a graph is used by one thread at a time, behind its lock
unsafe impl Send for Graph {}
// SAFETY: as above
unsafe impl Sync for Graph {}

impl Recorded for Graph {
    unsafe fn replay(&self) -> Result<()> {
        let _turn = self.1.take();
        let graph = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed(|| "replaying what was recorded".to_owned(), graph.launch())
    }
}

impl Driver for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn free(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let _turn = self.turns.take();
        failed(|| "the device's free memory".to_owned(), result::mem_get_info())
    }

    fn reserve(&self, bytes: usize) -> Result<Address> {
        self.bind()?;
        let _turn = self.turns.take();
        // SAFETY: `release` frees it
        let at = unsafe { result::malloc_sync(bytes.max(1)) };
        failed(|| format!("reserving {bytes} bytes on {}", self.name), at).map(Address)
    }

    unsafe fn release(&self, at: Address) -> Result<()> {
        self.wait()?;
        let _turn = self.turns.take();
        // SAFETY: the caller's promise, and all that was asked for has run
        failed(|| "giving memory back".to_owned(), unsafe { result::free_sync(at.0) })
    }

    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        self.bind()?;
        let _turn = self.turns.take();
        let function = self.function(kernel, launch.shared)?;
        let mut words = [([0u64; STRUCT / 8], 0); 24];
        assert!(args.len() <= words.len(), "BUG: `{kernel}` has {} arguments", args.len());
        words.iter_mut().zip(args).for_each(|(words, arg)| *words = arg.words());
        let mut pointers = [null_mut(); 24];
        pointers.iter_mut().zip(&mut words).for_each(|(pointer, (words, _))| *pointer = words.as_mut_ptr().cast());
        let three = |x: [u32; 3]| (x[0], x[1], x[2]);
        let (grid, block, stream) = (three(launch.grid), three(launch.block), self.stream.cu_stream());
        // SAFETY: the caller's promise
        let done =
            unsafe { result::launch_kernel(function, grid, block, launch.shared, stream, &mut pointers[..args.len()]) };
        failed(|| format!("launching `{kernel}` as {launch:?}"), done)
    }

    unsafe fn product(&self, p: &Product) -> Result<()> {
        self.bind()?;
        let _turn = self.turns.take();
        let key = Key {
            form: p.form,
            sizes: p.sizes()?,
            strides: (p.a.stride, p.b.stride, p.c.stride),
            out: p.c.element,
            add: p.add,
            aligned: [p.a.at, p.b.at, p.c.at].map(alignment),
        };
        let mut known = self.known();
        let Known { plans, choices, .. } = &mut *known;
        let plan = match plans.entry(key) {
            Entry::Occupied(found) => found.into_mut(),
            // SAFETY: the caller's promise
            Entry::Vacant(place) => place.insert(unsafe { self.chosen(p, key, choices.as_mut())? }),
        };
        // SAFETY: the caller's promise
        unsafe { self.multiply(p, plan, 0) }
    }

    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        let _turn = self.turns.take();
        // SAFETY: the caller's promise
        let done = unsafe { result::memset_d8_async(at.0, 0, bytes, self.stream.cu_stream()) };
        failed(|| "clearing memory".to_owned(), done)
    }

    unsafe fn write(&self, to: Address, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let _turn = self.turns.take();
        if from.len() <= copies::MOST {
            // SAFETY: the caller's promise
            return unsafe { self.copies.write(to, from) };
        }
        // SAFETY: the caller's promise; what is not pinned is read before the call returns
        let done = unsafe { result::memcpy_htod_async(to.0, from, self.stream.cu_stream()) };
        failed(|| format!("writing {} bytes to the device", from.len()), done)
    }

    unsafe fn read(&self, from: Address, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let turn = self.turns.take();
        // SAFETY: the caller's promise; nobody looks before the wait
        let done = unsafe { result::memcpy_dtoh_async(to, from.0, self.stream.cu_stream()) };
        failed(|| format!("reading {} bytes from the device", to.len()), done)?;
        drop(turn);
        self.wait()
    }

    unsafe fn read_later(&self, from: Address, bytes: usize) -> Result<Box<dyn Ticket>> {
        self.bind()?;
        let _turn = self.turns.take();
        // SAFETY: the caller's promise
        unsafe { self.copies.read(from, bytes, self.turns.clone()) }
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        let _turn = self.turns.take();
        // SAFETY: the caller's promise
        let done = unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream.cu_stream()) };
        failed(|| "copying on the device".to_owned(), done)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recorded>> {
        let what = || "recording a step".to_owned();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.turns.alone(|| {
            failed(what, self.stream.begin_capture(mode))?;
            let done = work();
            // the end of a capture must come, whatever happened in it
            let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
            done?;
            let Some(graph) = failed(what, graph)? else { bail!("nothing was recorded") };
            failed(what, graph.upload())?;
            Ok(Box::new(Graph(Mutex::new(graph), self.turns.clone())) as Box<dyn Recorded>)
        })
    }

    fn wait(&self) -> Result<()> {
        let _turn = self.turns.take();
        failed(|| format!("waiting for {}", self.name), self.stream.synchronize())
    }
}
