//! The host side of a GPU over a processor that emulates the kernels.
#![expect(clippy::unwrap_used, reason = "tests")]

mod machine;

use actloom_ops::gpu::driver::{Address, Arg, Driver, Element, Launch, Matrix, Product};
use machine::Machine;

fn bytes<T: Copy>(x: &[T]) -> &[u8] {
    // SAFETY: numbers without padding
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

fn floats(device: &dyn Driver, at: Address, n: usize) -> Vec<f32> {
    let mut out = vec![0u8; 4 * n];
    // SAFETY: the test's own memory
    unsafe { device.read(at, &mut out).unwrap() };
    out.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn products_of_every_form_are_those_of_the_definition() {
    let Some(device) = Machine::open() else { return };
    let at = device.reserve(4096).unwrap();
    // a = [[1, 2, 3], [4, 5, 6]] with rows four apart, b = [[1, 0, 2], [0, 1, 1]]
    let bf16 = |x: &[f32]| x.iter().map(|x| (x.to_bits() >> 16) as u16).collect::<Vec<_>>();
    let a = bf16(&[1., 2., 3., 99., 4., 5., 6., 99.]);
    let b = bf16(&[1., 0., 2., 0., 1., 1.]);
    let (ma, mb) = (Matrix { stride: 4, ..Matrix::new(at, Element::Bf16, 2, 3) }, at.plus(256));
    // SAFETY: all within what was reserved
    unsafe {
        device.write(at, bytes(&a)).unwrap();
        device.write(mb, bytes(&b)).unwrap();
        let mb = Matrix::new(mb, Element::Bf16, 2, 3);
        let c = |rows, columns| Matrix::new(at.plus(512), Element::F32, rows, columns);
        device.product(&Product::rows(ma, mb, c(2, 2))).unwrap();
        assert_eq!(floats(&device, at.plus(512), 4), [7., 5., 16., 11.]);
        device.product(&Product { scale: 2.0, add: true, ..Product::rows(ma, mb, c(2, 2)) }).unwrap();
        assert_eq!(floats(&device, at.plus(512), 4), [21., 15., 48., 33.]);
        device.product(&Product::back(ma.columns(0, 2), mb, c(2, 3))).unwrap();
        assert_eq!(floats(&device, at.plus(512), 6), [1., 2., 4., 4., 5., 13.]);
        device.clear(at.plus(512), 64).unwrap();
        device.product(&Product::weight(ma, mb, c(3, 3))).unwrap();
        assert_eq!(floats(&device, at.plus(512), 9), [1., 4., 6., 2., 5., 9., 3., 6., 12.]);
    }
}

#[test]
fn a_kernel_that_is_not_there_or_takes_other_arguments_is_an_error() {
    let Some(device) = Machine::open() else { return };
    // SAFETY: neither runs
    let error = |kernel, args: &[Arg]| unsafe {
        device.launch(kernel, Launch::new(1, 32), args).unwrap_err().to_string()
    };
    assert_eq!(error("rms_norms", &[]), "there is no kernel `rms_norms`");
    assert!(error("rms_norm", &[Arg::I32(1)]).contains("does not take arguments of [4] bytes"));
}
