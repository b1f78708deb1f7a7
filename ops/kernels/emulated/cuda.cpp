// CUDA's driver and cuBLASLt as one shared library that runs a program's kernels on the processor, and counts what was asked of it:
// so that the real program, built for CUDA, runs where there is no GPU. It stands for libcuda.so.1, libcublasLt.so.13, libcublas.so.13
// and libcurand.so.10, of which it has only what the program calls; whatever else is called fails.
//
// EMULATED_CUDA=count        computes nothing: memory is zeros, but for small copies, and may be larger than the machine's
// EMULATED_CUDA=none         has no device
// EMULATED_CUDA_MEMORY=BYTES what the device has, 1 GiB unless set
// EMULATED_CUDA_REPORT=FILE  at the end of the process the counts are written there, as JSON: of all that was asked, but of pinned memory,
//                            events and bytes in use what is left; `nodes` are launches, products and copies of all that was recorded
//
// Stricter than a device where that finds mistakes: work that is recorded may not touch the host, a kernel needs permission for
// much shared memory, matrices must be inside memory that is lent and as aligned as their plan says, and what is lent is NaN.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "driver.cpp"

namespace {

using Address = unsigned long long;

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500, BAD_ADDRESS = 700, CAPTURING = 900 };
enum { LT_OK = 0, LT_INVALID = 7, LT_FAILED = 13 };

struct Counts {
    unsigned long long products = 0, reserved = 0, released = 0, to_device = 0, to_host = 0, copies = 0, clears = 0, waits = 0,
                       recorded = 0, nodes = 0, replayed = 0, events = 0, pinned = 0, plans = 0;
};

struct Function {
    std::string name;
    const Kernel *kernel;
    unsigned shared = 48 << 10;
    unsigned long long launches = 0;
};

struct Layout {
    int type;  // 0: float32, 14: bf16
    size_t rows, columns;
    long stride;
    size_t bytes() const { return ((columns - 1) * stride + rows) * (type == 0 ? 4 : 2); }
};
struct Matmul {
    int transposed_a = 0, transposed_b = 0;
};
struct Preference {
    unsigned aligned[4] = {256, 256, 256, 256};
};

struct State {
    std::recursive_mutex lock;
    bool computes = true;
    size_t memory = 1 << 30, used = 0, peak = 0;
    std::map<Address, size_t> lent;
    std::map<std::string, std::unique_ptr<Function>> functions;
    Counts counts;
    std::vector<std::function<int()>> *recording = nullptr;
    std::thread::id recorder;
    std::string complaint;
    double clock = 0;

    State() {
        const char *mode = getenv("EMULATED_CUDA"), *bytes = getenv("EMULATED_CUDA_MEMORY");
        computes = !mode || strcmp(mode, "count") != 0;
        if (bytes) memory = strtoull(bytes, nullptr, 10);
        atexit([] { report(); });
    }
    static State &get() {
        static State *state = new State;  // lives as long as anybody may call
        return *state;
    }
    static void report() {
        State &s = get();
        const char *path = getenv("EMULATED_CUDA_REPORT");
        FILE *out = path ? fopen(path, "w") : nullptr;
        if (!out) return;
        const Counts &c = s.counts;
        unsigned long long launches = 0;
        for (auto &f : s.functions) launches += f.second->launches;
        fprintf(out, "{\"launches\": %llu, \"products\": %llu, \"plans\": %llu, \"reserved\": %llu, \"released\": %llu,\n", launches,
                c.products, c.plans, c.reserved, c.released);
        fprintf(out, " \"to_device\": %llu, \"to_host\": %llu, \"copies\": %llu, \"clears\": %llu, \"waits\": %llu,\n", c.to_device,
                c.to_host, c.copies, c.clears, c.waits);
        fprintf(out, " \"recorded\": %llu, \"nodes\": %llu, \"replayed\": %llu, \"events\": %llu, \"pinned\": %llu,\n", c.recorded, c.nodes,
                c.replayed, c.events, c.pinned);
        fprintf(out, " \"used\": %zu, \"peak\": %zu, \"complaint\": \"%s\",\n \"kernels\": {", s.used, s.peak, s.complaint.c_str());
        bool first = true;
        for (auto &f : s.functions)
            if (f.second->launches) fprintf(out, "%s\"%s\": %llu", first ? "" : ", ", f.first.c_str(), f.second->launches), first = false;
        fprintf(out, "}}\n");
        fclose(out);
    }
    int refuse(int code, const std::string &why) {
        if (complaint.empty()) complaint = why;
        fprintf(stderr, "emulated CUDA: %s\n", why.c_str());
        return code;
    }
    bool inside(Address at, size_t bytes) const {
        auto found = lent.upper_bound(at);
        return found != lent.begin() && (--found, at + bytes <= found->first + found->second);
    }
    // What is small is copied even where nothing is computed: a program may look whether what it wrote is still there.
    bool copies(size_t bytes) const { return computes || bytes <= 65536; }
    // Runs work on the device, or records it.
    int ask(std::function<int()> work) {
        if (!recording) return work();
        if (recorder != std::this_thread::get_id()) return refuse(CAPTURING, "another thread's work in a recording");
        recording->push_back(std::move(work));
        return OK;
    }
    // What waits for the device, or lends memory, is not recorded.
    int host(const char *what) { return recording ? refuse(CAPTURING, std::string(what) + " while recording") : OK; }
};

using Turn = std::lock_guard<std::recursive_mutex>;
#define STATE                      \
    State &s = State::get();       \
    Turn turn(s.lock);

int lend(State &s, Address *at, size_t bytes) {
    if (int bad = s.host("lending memory")) return bad;
    if (bytes == 0) return s.refuse(INVALID, "no bytes were asked for");
    if (s.used + bytes > s.memory) return NO_MEMORY;
    void *found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return NO_MEMORY;
    if (s.computes) memset(found, 0xff, bytes);
    *at = reinterpret_cast<Address>(found);
    s.lent[*at] = bytes;
    s.used += bytes;
    s.peak = std::max(s.peak, s.used);
    s.counts.reserved++;
    return OK;
}

int take_back(State &s, Address at) {
    if (int bad = s.host("giving memory back")) return bad;
    auto found = s.lent.find(at);
    if (found == s.lent.end()) return s.refuse(INVALID, "memory was given back that was not lent");
    munmap(reinterpret_cast<void *>(at), found->second);
    s.used -= found->second;
    s.lent.erase(found);
    s.counts.released++;
    return OK;
}

// D = alpha op(A) op(B) + beta C, column-major, C and D the same; sums in float64.
void multiply(const Matmul &m, const Layout &a, const Layout &b, const Layout &d, float alpha, float beta, Address at_a, Address at_b,
              Address at_d) {
    auto *x = reinterpret_cast<const bf16 *>(at_a), *y = reinterpret_cast<const bf16 *>(at_b);
    size_t inner = m.transposed_a ? a.rows : a.columns;
    for (size_t i = 0; i < d.rows; i++)
        for (size_t j = 0; j < d.columns; j++) {
            double sum = 0;
            for (size_t l = 0; l < inner; l++)
                sum += double(to_float(m.transposed_a ? x[l + i * a.stride] : x[i + l * a.stride])) *
                       to_float(m.transposed_b ? y[j + l * b.stride] : y[l + j * b.stride]);
            sum *= alpha;
            size_t at = i + j * d.stride;
            if (d.type == 0) {
                auto *out = reinterpret_cast<float *>(at_d);
                out[at] = float(sum + (beta != 0 ? beta * double(out[at]) : 0));
            } else {
                auto *out = reinterpret_cast<bf16 *>(at_d);
                out[at] = to_bf16(float(sum + (beta != 0 ? beta * double(to_float(out[at])) : 0)));
            }
        }
}

struct Graph {
    std::vector<std::function<int()>> work;
};

}  // namespace

extern "C" {

// --- the device

int cuInit(unsigned) {
    const char *mode = getenv("EMULATED_CUDA");
    return mode && strcmp(mode, "none") == 0 ? NO_DEVICE : OK;
}
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : 101; }
int cuDeviceGetCount(int *count) { return *count = 1, OK; }
int cuDeviceGetName(char *name, int size, int) { return snprintf(name, size, "emulated device"), OK; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 16: *value = 6; return OK;    // multiprocessors
        case 75: *value = 9; return OK;    // compute capability
        case 76: *value = 0; return OK;
        case 115: *value = 1; return OK;   // memory pools
        default: STATE return s.refuse(INVALID, "device attribute " + std::to_string(attribute));
    }
}
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = reinterpret_cast<void *>(16), OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
static thread_local void *current = nullptr;
int cuCtxSetCurrent(void *context) { return current = context, OK; }
int cuCtxGetCurrent(void **context) { return *context = current, OK; }
int cuCtxSynchronize() { STATE s.counts.waits++; return s.host("waiting"); }
int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = reinterpret_cast<void *>(32), OK; }
int cuMemPoolSetAttribute(void *, int attribute, void *) { return attribute == 4 ? OK : INVALID; }
int cuMemGetInfo_v2(size_t *available, size_t *all) { STATE *all = s.memory, *available = s.memory - s.used; return OK; }
int cuGetErrorName(int code, const char **text) {
    *text = code == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == CAPTURING ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : "CUDA_ERROR";
    return OK;
}
int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

// --- streams and events

int cuStreamCreate(void **stream, unsigned) { return *stream = reinterpret_cast<void *>(48), OK; }
int cuStreamDestroy_v2(void *) { return OK; }
int cuStreamSynchronize(void *) { STATE s.counts.waits++; return s.host("waiting for the stream"); }
int cuStreamWaitEvent(void *, void *, unsigned) { return OK; }
// Events know the time: a product takes 2, and 1 by the second algorithm that is advised.
int cuEventCreate(void **event, unsigned) { STATE s.counts.events++; return *event = new double(0), OK; }
int cuEventRecord(void *event, void *) { STATE *static_cast<double *>(event) = s.clock; return s.host("an event of the host"); }
int cuEventSynchronize(void *) { STATE return s.host("waiting for an event"); }
int cuEventQuery(void *) { return OK; }
int cuEventElapsedTime_v2(float *ms, void *from, void *to) {
    return *ms = float(*static_cast<double *>(to) - *static_cast<double *>(from)), OK;
}
int cuEventDestroy_v2(void *event) { STATE s.counts.events--; return delete static_cast<double *>(event), OK; }

// --- memory

int cuMemAlloc_v2(Address *at, size_t bytes) { STATE return lend(s, at, bytes); }
int cuMemAllocAsync(Address *at, size_t bytes, void *) { STATE return lend(s, at, bytes); }
int cuMemFree_v2(Address at) { STATE return take_back(s, at); }
int cuMemFreeAsync(Address at, void *) { STATE return take_back(s, at); }
int cuMemHostAlloc(void **at, size_t bytes, unsigned) { STATE s.counts.pinned++; return *at = malloc(bytes), OK; }
int cuMemFreeHost(void *at) { STATE s.counts.pinned--; free(at); return OK; }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *) {
    STATE if (int bad = s.host("writing from the host")) return bad;
    s.counts.to_device++;
    if (!s.inside(to, bytes)) return s.refuse(BAD_ADDRESS, "writing outside of what was lent");
    if (s.copies(bytes)) memcpy(reinterpret_cast<void *>(to), from, bytes);
    return OK;
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *) {
    STATE if (int bad = s.host("reading to the host")) return bad;
    s.counts.to_host++;
    if (!s.inside(from, bytes)) return s.refuse(BAD_ADDRESS, "reading outside of what was lent");
    s.copies(bytes) ? memcpy(to, reinterpret_cast<void *>(from), bytes) : memset(to, 0, bytes);
    return OK;
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *) {
    STATE s.counts.copies++;
    if (!s.inside(to, bytes) || !s.inside(from, bytes)) return s.refuse(BAD_ADDRESS, "copying outside of what was lent");
    return s.ask([=, &s] { return s.computes ? (memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes), OK) : OK; });
}
int cuMemsetD8Async(Address at, unsigned char value, size_t bytes, void *) {
    STATE s.counts.clears++;
    if (!s.inside(at, bytes)) return s.refuse(BAD_ADDRESS, "clearing outside of what was lent");
    return s.ask([=, &s] { return s.computes ? (memset(reinterpret_cast<void *>(at), value, bytes), OK) : OK; });
}

// --- kernels

int cuModuleLoadData(void **module, const void *image) {
    STATE unsigned magic;
    memcpy(&magic, image, 4);
    if (magic != 0xba55ed50) return s.refuse(200, "an image that is no fat binary");
    return *module = const_cast<void *>(image), OK;
}
int cuModuleUnload(void *) { return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    STATE auto found = kernels().find(name);
    // the image holds names of its kernels as they are; its size is in its head
    unsigned long long size;
    memcpy(&size, static_cast<char *>(module) + 8, 8);
    std::string symbol = std::string(".text.") + name;
    bool there = memmem(module, size + 16, symbol.c_str(), symbol.size() + 1) != nullptr;
    if (found == kernels().end() || !there) return NOT_FOUND;
    auto &known = s.functions[name];
    if (!known) known.reset(new Function{name, &found->second});
    *function = known.get();
    return OK;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    STATE if (attribute != 8 || value > 227 << 10) return s.refuse(INVALID, "a kernel asked for too much shared memory");
    static_cast<Function *>(function)->shared = value;
    return OK;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *,
                   void **params, void **) {
    STATE auto *f = static_cast<Function *>(function);
    if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || bx * by * bz == 0 || bx * by * bz > 1024)
        return s.refuse(INVALID, "`" + f->name + "` was launched in sizes that no device takes");
    if (shared > f->shared) return s.refuse(INVALID, "`" + f->name + "` has no permission for so much shared memory");
    f->launches++;
    // arguments are read when the work is asked for, not when it runs
    auto bytes = std::make_shared<std::vector<std::vector<char>>>();
    for (size_t i = 0; i < f->kernel->sizes.size(); i++) {
        auto *from = static_cast<char *>(params[i]);
        bytes->emplace_back(from, from + f->kernel->sizes[i]);
    }
    return s.ask([=, &s]() -> int {
        if (!s.computes) return OK;
        std::vector<void *> args;
        for (auto &arg : *bytes) args.push_back(arg.data());
        static unsigned seed = 0;
        launch(Dim(gx, gy, gz), Dim(bx, by, bz), shared, ++seed, f->kernel->with(args.data()));
        return OK;
    });
}

// --- recorded work

int cuStreamBeginCapture_v2(void *, int) {
    STATE if (s.recording) return s.refuse(CAPTURING, "recording while recording");
    s.recording = new std::vector<std::function<int()>>;
    s.recorder = std::this_thread::get_id();
    return OK;
}
int cuStreamEndCapture(void *, void **graph) {
    STATE if (!s.recording) return s.refuse(INVALID, "the end of a recording that did not begin");
    auto *made = new Graph{std::move(*s.recording)};
    delete s.recording;
    s.recording = nullptr;
    s.counts.recorded++;
    s.counts.nodes += made->work.size();
    return *graph = made, OK;
}
int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) { return *exec = new Graph(*static_cast<Graph *>(graph)), OK; }
int cuGraphUpload(void *, void *) { return OK; }
int cuGraphLaunch(void *exec, void *) {
    STATE s.counts.replayed++;
    for (auto &work : static_cast<Graph *>(exec)->work)
        if (int bad = work()) return bad;
    return OK;
}
int cuGraphExecDestroy(void *exec) { return delete static_cast<Graph *>(exec), OK; }
int cuGraphDestroy(void *graph) { return delete static_cast<Graph *>(graph), OK; }

// --- products

size_t cublasLtGetVersion() { return 130001; }
int cublasLtCreate(void **handle) { return *handle = reinterpret_cast<void *>(80), LT_OK; }
int cublasLtDestroy(void *) { return LT_OK; }
int cublasLtMatrixLayoutCreate(void **layout, int type, unsigned long long rows, unsigned long long columns, long long stride) {
    STATE if (size_t(stride) < rows || (type != 0 && type != 14)) return s.refuse(LT_INVALID, "a matrix's layout");
    return *layout = new Layout{type, rows, columns, long(stride)}, LT_OK;
}
int cublasLtMatrixLayoutDestroy(void *layout) { return delete static_cast<Layout *>(layout), LT_OK; }
int cublasLtMatmulDescCreate(void **product, int compute, int scale) {
    STATE if (compute != 68 || scale != 0) return s.refuse(LT_INVALID, "products have float32 sums and scales");
    return *product = new Matmul, LT_OK;
}
int cublasLtMatmulDescSetAttribute(void *product, int attribute, const void *value, size_t bytes) {
    STATE auto *m = static_cast<Matmul *>(product);
    if (bytes != 4 || (attribute != 3 && attribute != 4)) return s.refuse(LT_INVALID, "an attribute of a product");
    memcpy(attribute == 3 ? &m->transposed_a : &m->transposed_b, value, 4);
    return LT_OK;
}
int cublasLtMatmulDescDestroy(void *product) { return delete static_cast<Matmul *>(product), LT_OK; }
int cublasLtMatmulPreferenceCreate(void **preference) { return *preference = new Preference, LT_OK; }
int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes) {
    STATE unsigned number;
    if (attribute == 1 && bytes == 8) return LT_OK;  // bytes of workspace
    if (bytes != 4) return s.refuse(LT_INVALID, "a preference of " + std::to_string(bytes) + " bytes");
    memcpy(&number, value, 4);
    if (attribute == 3) return number == 2 || number == 0 ? LT_OK : s.refuse(LT_INVALID, "partial sums have to be float32");
    if (attribute < 5 || attribute > 8) return s.refuse(LT_INVALID, "preference " + std::to_string(attribute));
    static_cast<Preference *>(preference)->aligned[attribute - 5] = number;
    return LT_OK;
}
int cublasLtMatmulPreferenceDestroy(void *preference) { return delete static_cast<Preference *>(preference), LT_OK; }

// An algorithm as far as the caller may look: here it carries how addresses have to be aligned.
struct Algorithm {
    unsigned long long data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
int cublasLtMatmulAlgoGetHeuristic(void *, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted, Heuristic *out,
                                   int *found) {
    STATE auto *m = static_cast<Matmul *>(product);
    auto *la = static_cast<Layout *>(a), *lb = static_cast<Layout *>(b), *ld = static_cast<Layout *>(d);
    auto op = [](bool transposed, Layout *l) { return transposed ? std::pair(l->columns, l->rows) : std::pair(l->rows, l->columns); };
    auto [rows, inner] = op(m->transposed_a, la);
    auto [inner_b, columns] = op(m->transposed_b, lb);
    if (wanted < 1 || c != d || inner != inner_b || rows != ld->rows || columns != ld->columns || la->type != 14 || lb->type != 14)
        return s.refuse(LT_INVALID, "matrices that do not fit together");
    auto *p = static_cast<Preference *>(preference);
    *found = std::min(wanted, 3);
    for (int which = 0; which < *found; which++) {
        out[which] = {};
        for (int i = 0; i < 4; i++) out[which].algorithm.data[i] = p->aligned[i];
        out[which].algorithm.data[7] = which;
    }
    s.counts.plans++;
    return LT_OK;
}
int cublasLtMatmul(void *, void *product, const float *alpha, Address a, void *la, Address b, void *lb, const float *beta, Address c, void *lc,
                   Address d, void *ld, const Algorithm *algorithm, void *, size_t, void *) {
    STATE s.counts.products++;
    Matmul m = *static_cast<Matmul *>(product);
    Layout at_a = *static_cast<Layout *>(la), at_b = *static_cast<Layout *>(lb), at_d = *static_cast<Layout *>(ld);
    if (c != d || lc != ld) return s.refuse(LT_INVALID, "a product that adds elsewhere");
    if (!s.inside(a, at_a.bytes()) || !s.inside(b, at_b.bytes()) || !s.inside(d, at_d.bytes()))
        return s.refuse(LT_FAILED, "a product outside of what was lent");
    Address at[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if (at[i] % algorithm->data[i]) return s.refuse(LT_INVALID, "a matrix that is less aligned than its plan says");
    float x = *alpha, y = *beta;
    s.clock += algorithm->data[7] == 1 ? 1 : 2;
    return s.ask([=, &s] {
        if (s.computes) multiply(m, at_a, at_b, at_d, x, y, a, b, d);
        return LT_OK;
    });
}

// --- what candle opens beside

int cublasCreate_v2(void **handle) { return *handle = reinterpret_cast<void *>(96), 0; }
int cublasDestroy_v2(void *) { return 0; }
int cublasSetStream_v2(void *, void *) { return 0; }
int curandCreateGenerator(void **generator, int) { return *generator = reinterpret_cast<void *>(112), 0; }
int curandSetStream(void *, void *) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
int curandDestroyGenerator(void *) { return 0; }

}  // extern "C"
