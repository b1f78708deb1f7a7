// All kernels behind one function, for a host that emulates a device: a shared library.
#include <string>
#include <unordered_map>

// clang-format off
#include "../common.cuh"
#include "../softmax.cuh"
#include "../philox.cuh"
#include "../anysize.cuh"
#include "../tiles.cuh"
// clang-format on

// Sources have names of their own for small things.
namespace rows {
#include "../rows.cu"
}
namespace head {
#include "../head.cu"
}
namespace optimizer {
#include "../optimizer.cu"
}
namespace sampling {
#include "../sampling.cu"
}
namespace attention {
#include "../attention.cu"
}
namespace paged {
#include "../paged.cu"
}

namespace {

using Call = std::function<void()>;

// Takes a kernel's arguments from where they lie, as their types in its source.
template <class... A, size_t... I>
Call with(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
    return [=] { kernel(*static_cast<std::remove_reference_t<A> *>(args[I])...); };
}

template <class... A>
struct Entry {
    static Call make(void (*kernel)(A...), void **args) { return with(kernel, args, std::index_sequence_for<A...>()); }
};

struct Kernel {
    std::function<Call(void **)> with;
    std::vector<size_t> sizes;  // of its arguments, in bytes
};

template <class... A>
Kernel kernel(void (*f)(A...)) {
    return {[f](void **args) { return Entry<A...>::make(f, args); }, {sizeof(A)...}};
}

#define KERNEL(source, name) {#name, kernel(source::name)}
const std::unordered_map<std::string, Kernel> &kernels() {
    static const std::unordered_map<std::string, Kernel> all = {
        KERNEL(rows, rms_norm),
        KERNEL(rows, rms_norm_backward),
        KERNEL(rows, add_partials),
        KERNEL(rows, norm_rotate),
        KERNEL(rows, norm_rotate_backward),
        KERNEL(rows, add_bias),
        KERNEL(rows, column_sums),
        KERNEL(rows, swiglu),
        KERNEL(rows, swiglu_backward),
        KERNEL(rows, gather_rows),
        KERNEL(rows, embedding_backward),
        KERNEL(rows, scatter_rows),
        KERNEL(rows, add),
        KERNEL(rows, drop),
        KERNEL(rows, merge),
        KERNEL(head, head_stats),
        KERNEL(head, head_gradient),
        KERNEL(optimizer, squares),
        KERNEL(optimizer, clip),
        KERNEL(optimizer, adamw_f32),
        KERNEL(optimizer, adamw_bf16),
        KERNEL(sampling, sample),
        KERNEL(attention, attention_forward_32),
        KERNEL(attention, attention_dq_32),
        KERNEL(attention, attention_dkv_32),
        KERNEL(attention, attention_delta_32),
        KERNEL(attention, attention_forward_64),
        KERNEL(attention, attention_dq_64),
        KERNEL(attention, attention_dkv_64),
        KERNEL(attention, attention_delta_64),
        KERNEL(attention, attention_forward_128),
        KERNEL(attention, attention_dq_128),
        KERNEL(attention, attention_dkv_128),
        KERNEL(attention, attention_delta_128),
        KERNEL(attention, attention_any_forward),
        KERNEL(attention, attention_any_dq),
        KERNEL(attention, attention_any_dkv),
        KERNEL(attention, attention_any_delta),
        KERNEL(paged, attention_decode_32),
        KERNEL(paged, attention_decode_64),
        KERNEL(paged, attention_decode_128),
        KERNEL(paged, attention_decode_any),
        KERNEL(paged, cache_write),
        KERNEL(paged, cache_gather),
    };
    return all;
}

}  // namespace

// 0: done; 1: no such kernel; 2: the arguments are not those of its source, in number or size.
extern "C" int emulated_launch(const char *name, const unsigned *grid, const unsigned *block, unsigned shared, void **args,
                               const size_t *sizes, size_t count) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    const Kernel &k = found->second;
    if (k.sizes != std::vector<size_t>(sizes, sizes + count)) return 2;
    static unsigned seed = 0;
    launch(Dim(grid[0], grid[1], grid[2]), Dim(block[0], block[1], block[2]), shared, ++seed, k.with(args));
    return 0;
}

// c (m, n) = scale * a b, or added to c: rows of `form` 0, 1, 2 as `gpu::driver::Form`; sums in float64.
extern "C" void emulated_product(int form, const bf16 *a, size_t lda, const bf16 *b, size_t ldb, void *c, size_t ldc,
                                 int c_is_float, size_t m, size_t n, size_t k, float scale, int add) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t l = 0; l < k; l++) {
                float x = to_float(form == 2 ? a[l * lda + i] : a[i * lda + l]);
                float y = to_float(form == 0 ? b[j * ldb + l] : b[l * ldb + j]);
                sum += double(x) * y;
            }
            sum *= scale;
            size_t at = i * ldc + j;
            if (c_is_float) {
                float *out = static_cast<float *>(c);
                out[at] = float(add ? out[at] + sum : sum);
            } else {
                bf16 *out = static_cast<bf16 *>(c);
                out[at] = to_bf16(float(add ? to_float(out[at]) + sum : sum));
            }
        }
}
