//! What a device does: memory by address, kernels by name, matrix products.
//!
//! Invariants: everything that is asked for runs in the order in which it was asked, as if on one stream; only [`Driver::read`],
//! [`Ticket::wait`] and [`Driver::wait`] make the host wait.

use candle_core::{Result, bail};

/// A place in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub u64);

impl Address {
    /// No place: what a kernel takes for "not there".
    pub const NONE: Address = Address(0);

    /// So many bytes further.
    #[must_use]
    pub fn plus(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// What an element of a matrix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    Bf16,
    F32,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Element::Bf16 => 2,
            Element::F32 => 4,
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    At(Address),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F32(f32),
    F64(f64),
    /// A struct by value: its bytes, the first so many of them.
    Struct([u64; STRUCT / 8], usize),
}

/// Bytes of the largest struct that a kernel takes.
pub const STRUCT: usize = 160;

impl From<Address> for Arg {
    fn from(at: Address) -> Arg {
        Arg::At(at)
    }
}

macro_rules! args {
    ($($from:ty => $arg:ident),*) => {
        $(impl From<$from> for Arg {
            fn from(x: $from) -> Arg {
                Arg::$arg(x)
            }
        })*
    };
}

args!(i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32, f64 => F64);

impl Arg {
    /// A size, for a kernel that takes an `int`.
    ///
    /// # Panics
    /// Beyond 2^31: a bug in the caller, which should have cut its work.
    pub fn int(size: usize) -> Arg {
        match i32::try_from(size) {
            Ok(size) => Arg::I32(size),
            Err(_) => panic!("BUG: a kernel was given the size {size} as a 32-bit number"),
        }
    }

    /// A size, for a kernel that takes a `long`.
    pub fn long(size: usize) -> Arg {
        Arg::I64(size as i64)
    }

    /// A struct, as it lies in memory.
    ///
    /// # Panics
    /// Where it is larger than [`STRUCT`].
    pub fn bytes_of<T: Copy>(value: &T) -> Arg {
        let mut out = [0u64; STRUCT / 8];
        assert!(size_of::<T>() <= STRUCT, "BUG: a kernel takes a struct of {} bytes", size_of::<T>());
        // SAFETY: both are as long as that, and the makers of kernels' structs leave no padding
        unsafe {
            let from = std::ptr::from_ref(value).cast::<u8>();
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr().cast::<u8>(), size_of::<T>());
        }
        Arg::Struct(out, size_of::<T>())
    }

    /// The argument as it lies in memory: eight bytes at a time, of which so many bytes count.
    pub fn words(self) -> ([u64; STRUCT / 8], usize) {
        let mut out = [0u64; STRUCT / 8];
        let mut put = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            out[0] = u64::from_ne_bytes(word);
            bytes.len()
        };
        let n = match self {
            Arg::At(Address(x)) | Arg::U64(x) => put(&x.to_ne_bytes()),
            Arg::I64(x) => put(&x.to_ne_bytes()),
            Arg::I32(x) => put(&x.to_ne_bytes()),
            Arg::U32(x) => put(&x.to_ne_bytes()),
            Arg::F32(x) => put(&x.to_ne_bytes()),
            Arg::F64(x) => put(&x.to_ne_bytes()),
            Arg::Struct(words, n) => return (words, n),
        };
        (out, n)
    }
}

/// How a kernel is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Launch {
    /// `grid` blocks of `block` threads.
    ///
    /// # Panics
    /// Beyond 2^31 blocks: a bug in the caller.
    pub fn new(grid: usize, block: u32) -> Launch {
        match u32::try_from(grid).ok().filter(|grid| *grid < 1 << 31) {
            Some(grid) => Launch { grid: [grid, 1, 1], block: [block, 1, 1], shared: 0 },
            None => panic!("BUG: a kernel was launched in {grid} blocks"),
        }
    }

    /// With so much dynamic shared memory.
    #[must_use]
    pub fn shared(self, bytes: usize) -> Launch {
        Launch { shared: bytes as u32, ..self }
    }
}

/// A matrix in device memory, row-major; rows may stand further apart than they are wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub at: Address,
    pub element: Element,
    pub rows: usize,
    pub columns: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Matrix {
    pub fn new(at: Address, element: Element, rows: usize, columns: usize) -> Matrix {
        Matrix { at, element, rows, columns, stride: columns }
    }

    /// Some of its columns.
    #[must_use]
    pub fn columns(self, from: usize, count: usize) -> Matrix {
        assert!(from + count <= self.columns, "BUG: columns {from}+{count} of {}", self.columns);
        Matrix { at: self.at.plus(from * self.element.bytes()), columns: count, ..self }
    }

    /// Some of its rows.
    #[must_use]
    pub fn rows(self, from: usize, count: usize) -> Matrix {
        assert!(from + count <= self.rows, "BUG: rows {from}+{count} of {}", self.rows);
        Matrix { at: self.at.plus(from * self.stride * self.element.bytes()), rows: count, ..self }
    }

    /// From the first element to behind the last.
    pub fn bytes(&self) -> usize {
        if self.rows == 0 { 0 } else { ((self.rows - 1) * self.stride + self.columns) * self.element.bytes() }
    }
}

/// How the factors of a product lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// a (m, k) b (n, k)^T: rows through a weight as checkpoints store it.
    Rows,
    /// a (m, k) b (k, n): gradients of rows through the same weight.
    Back,
    /// a (k, m)^T b (k, n): the gradient of the weight.
    Weight,
}

/// c (m, n) = scale * a b, or c += scale * a b. Factors are bf16, sums float32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    pub form: Form,
    pub a: Matrix,
    pub b: Matrix,
    pub c: Matrix,
    pub scale: f32,
    /// Adds to what `c` holds.
    pub add: bool,
}

impl Product {
    /// y (n, out) = x (n, in) W (out, in)^T
    pub fn rows(x: Matrix, w: Matrix, y: Matrix) -> Product {
        Product { form: Form::Rows, a: x, b: w, c: y, scale: 1.0, add: false }
    }

    /// dx (n, in) = dy (n, out) W (out, in)
    pub fn back(dy: Matrix, w: Matrix, dx: Matrix) -> Product {
        Product { form: Form::Back, a: dy, b: w, c: dx, scale: 1.0, add: false }
    }

    /// dw (out, in) += dy (n, out)^T x (n, in)
    pub fn weight(dy: Matrix, x: Matrix, dw: Matrix) -> Product {
        Product { form: Form::Weight, a: dy, b: x, c: dw, scale: 1.0, add: true }
    }

    /// (m, n, k), checked against all three matrices.
    ///
    /// # Errors
    /// When they do not fit together, or a factor is not bf16.
    pub fn sizes(&self) -> Result<(usize, usize, usize)> {
        let (a, b, c) = (&self.a, &self.b, &self.c);
        let (m, k) = if self.form == Form::Weight { (a.columns, a.rows) } else { (a.rows, a.columns) };
        let (n, bk) = if self.form == Form::Rows { (b.rows, b.columns) } else { (b.columns, b.rows) };
        let fits = k == bk && (c.rows, c.columns) == (m, n);
        let wide = [a, b, c].iter().all(|x| x.stride >= x.columns);
        if !fits || !wide || a.element != Element::Bf16 || b.element != Element::Bf16 {
            bail!("a product of {a:?} and {b:?} into {c:?}, as {:?}", self.form);
        }
        Ok((m, n, k))
    }
}

/// A copy to the host that is on its way.
pub trait Ticket: Send {
    /// Waits for it.
    ///
    /// # Errors
    /// The device's.
    fn wait(self: Box<Self>) -> Result<Vec<u8>>;
}

/// Work that was recorded and can be asked for again as one. The device outlives it.
pub trait Recorded: Send + Sync {
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// As [`Driver::launch`], of all that was recorded.
    unsafe fn replay(&self) -> Result<()>;
}

/// A device. Errors are its own, with what was asked of it.
pub trait Driver: Send + Sync {
    /// What it is, for people.
    fn name(&self) -> String;

    /// Processors that blocks run on.
    fn processors(&self) -> usize;

    /// Bytes that are free, and all.
    fn free(&self) -> Result<(usize, usize)>;

    /// Memory, aligned to 256 bytes at least; given back by [`Driver::release`].
    fn reserve(&self, bytes: usize) -> Result<Address>;

    /// # Safety
    /// Nothing that reads or writes there may be asked for afterwards.
    unsafe fn release(&self, at: Address) -> Result<()>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// Arguments are those of the kernel's source, in number, order and size, and addresses are of memory that is large
    /// enough and lives until the kernel has run.
    unsafe fn launch(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()>;

    /// Runs a product.
    ///
    /// # Safety
    /// As [`Driver::launch`], of the three matrices.
    unsafe fn product(&self, product: &Product) -> Result<()>;

    /// Sets bytes to 0.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<()>;

    /// Bytes from the host, which may be used again at once.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn write(&self, to: Address, from: &[u8]) -> Result<()>;

    /// Bytes to the host, once all that was asked for has run.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn read(&self, from: Address, to: &mut [u8]) -> Result<()>;

    /// As [`Driver::read`], without waiting; later work may write there.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn read_later(&self, from: Address, bytes: usize) -> Result<Box<dyn Ticket>>;

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()>;

    /// Records what `work` asks for instead of running it: launches, products and copies on the device alone.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recorded>>;

    /// Waits until all that was asked for has run.
    fn wait(&self) -> Result<()>;
}

/// A device that does nothing: for finding out what would be asked of one.
pub struct Dry {
    pub processors: usize,
}

struct Zeros(usize);

impl Ticket for Zeros {
    fn wait(self: Box<Self>) -> Result<Vec<u8>> {
        Ok(vec![0; self.0])
    }
}

struct Nothing;

impl Recorded for Nothing {
    unsafe fn replay(&self) -> Result<()> {
        Ok(())
    }
}

impl Driver for Dry {
    fn name(&self) -> String {
        "no device".to_owned()
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn free(&self) -> Result<(usize, usize)> {
        Ok((usize::MAX, usize::MAX))
    }

    fn reserve(&self, _bytes: usize) -> Result<Address> {
        Ok(Address(1 << 40))
    }

    unsafe fn release(&self, _at: Address) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, _kernel: &'static str, _launch: Launch, _args: &[Arg]) -> Result<()> {
        Ok(())
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        product.sizes().map(|_| ())
    }

    unsafe fn clear(&self, _at: Address, _bytes: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn write(&self, _to: Address, _from: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn read(&self, _from: Address, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    unsafe fn read_later(&self, _from: Address, bytes: usize) -> Result<Box<dyn Ticket>> {
        Ok(Box::new(Zeros(bytes)))
    }

    unsafe fn copy(&self, _to: Address, _from: Address, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recorded>> {
        work()?;
        Ok(Box::new(Nothing))
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_know_their_sizes_and_refuse_what_does_not_fit() {
        let m = |rows, columns| Matrix::new(Address(256), Element::Bf16, rows, columns);
        let f = |rows, columns| Matrix::new(Address(256), Element::F32, rows, columns);
        assert_eq!(Product::rows(m(5, 3), m(7, 3), m(5, 7)).sizes().unwrap(), (5, 7, 3));
        assert_eq!(Product::back(m(5, 7), m(7, 3), f(5, 3)).sizes().unwrap(), (5, 3, 7));
        assert_eq!(Product::weight(m(5, 7), m(5, 3), f(7, 3)).sizes().unwrap(), (7, 3, 5));
        assert!(Product::rows(m(5, 3), m(3, 7), m(5, 7)).sizes().is_err());
        assert!(Product::rows(f(5, 3), m(7, 3), m(5, 7)).sizes().is_err(), "factors are bf16");
        assert!(Product::weight(m(5, 7), m(6, 3), f(7, 3)).sizes().is_err());
    }

    #[test]
    fn parts_of_a_matrix_are_where_they_should_be() {
        let all = Matrix::new(Address(1000), Element::Bf16, 4, 10);
        let part = all.columns(6, 4).rows(2, 2);
        assert_eq!((part.at, part.rows, part.columns, part.stride), (Address(1000 + 2 * 26), 2, 4, 10));
        assert_eq!((all.bytes(), part.bytes()), (80, 28));
    }

    #[test]
    fn arguments_have_the_bytes_of_their_type() {
        let first = |arg: Arg| (arg.words().0[0].to_ne_bytes(), arg.words().1);
        assert_eq!(first(7i32.into()), ([7, 0, 0, 0, 0, 0, 0, 0], 4));
        assert_eq!(first(Arg::long(1 << 32)), ([0, 0, 0, 0, 1, 0, 0, 0], 8));
        assert_eq!(first(1f32.into()).0[..4], 1f32.to_ne_bytes());
        assert_eq!(first(Address(5).into()).1, 8);
        let (words, n) = Arg::bytes_of(&[1u64, 2, 3]).words();
        assert_eq!((&words[..4], n), (&[1, 2, 3, 0][..], 24));
    }
}
