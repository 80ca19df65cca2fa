// Times attention in ggml, the tensor library of llama.cpp, for compare.py. README.md has the protocol and how to build it.
//
// ggml computes with f32 queries and f32, f16 or bf16 keys and values. A causal mask is a dense tensor of f16.
#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// Seconds after which a first call counts as the measurement: it need not be warmed up.
static const double SLOW = 2.0;

// The text after "name": in a flat object, without quotes; "" if there is none.
static std::string field(const std::string& line, const std::string& name) {
    size_t start = line.find("\"" + name + "\":");
    if (start == std::string::npos) return "";
    start = line.find_first_not_of(" ", start + name.size() + 3);
    if (line[start] == '"') return line.substr(start + 1, line.find('"', start + 1) - start - 1);
    if (line[start] == '[') return line.substr(start + 1, line.find(']', start) - start - 1);
    return line.substr(start, line.find_first_of(",}", start) - start);
}

struct Case {
    int batch, q_heads, kv_heads, q_len, kv_len, dim, causal;

    explicit Case(const std::string& list) {
        if (std::sscanf(list.c_str(), "%d, %d, %d, %d, %d, %d, %d", &batch, &q_heads, &kv_heads, &q_len, &kv_len, &dim,
                        &causal) != 7)
            throw std::runtime_error("a case has seven numbers");
    }
};

static ggml_type type_of(const std::string& dtype) {
    if (dtype == "f32") return GGML_TYPE_F32;
    if (dtype == "f16") return GGML_TYPE_F16;
    if (dtype == "bf16") return GGML_TYPE_BF16;
    throw std::runtime_error("no dtype " + dtype);
}

// f32 values into a tensor of any type, in the tensor's order.
static void fill(ggml_tensor* tensor, const std::vector<float>& values) {
    std::vector<char> bytes(ggml_nbytes(tensor));
    if (tensor->type == GGML_TYPE_F32)
        ggml_backend_tensor_set(tensor, values.data(), 0, bytes.size());
    else {
        ggml_quantize_chunk(tensor->type, values.data(), bytes.data(), 0, values.size() / tensor->ne[0], tensor->ne[0],
                            nullptr);
        ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
    }
}

// The last two dimensions of [heads][rows][columns] exchanged.
static std::vector<float> transposed(const std::vector<float>& in, size_t rows, size_t columns) {
    std::vector<float> out(in.size());
    for (size_t head = 0; head < in.size(); head += rows * columns)
        for (size_t r = 0; r < rows; r++)
            for (size_t c = 0; c < columns; c++) out[head + c * rows + r] = in[head + r * columns + c];
    return out;
}

template <class T, void (*RELEASE)(T)>
struct Releases {
    void operator()(T object) const { RELEASE(object); }
};
template <class T, void (*RELEASE)(T*)>
using Owned = std::unique_ptr<T, Releases<T*, RELEASE>>;

// A computation with its memory.
class Graph {
  public:
    explicit Graph(ggml_backend_t backend) : backend_(backend) {
        const size_t room = 32 * ggml_tensor_overhead() + ggml_graph_overhead();
        context_.reset(ggml_init({room, nullptr, true}));
    }

    ggml_context* context() const { return context_.get(); }

    void finish(ggml_tensor* result) {
        result_ = result;
        graph_ = ggml_new_graph(context());
        ggml_build_forward_expand(graph_, result);
        buffer_.reset(ggml_backend_alloc_ctx_tensors(context(), backend_));
        if (!buffer_) throw std::runtime_error("out of memory");
    }

    void run() const {
        if (ggml_backend_graph_compute(backend_, graph_) != GGML_STATUS_SUCCESS)
            throw std::runtime_error("the computation failed");
    }

    std::vector<float> output() const {
        std::vector<float> out(ggml_nelements(result_));
        ggml_backend_tensor_get(result_, out.data(), 0, out.size() * sizeof(float));
        return out;
    }

  private:
    ggml_backend_t backend_;
    Owned<ggml_context, ggml_free> context_;
    Owned<ggml_backend_buffer, ggml_backend_buffer_free> buffer_;
    ggml_cgraph* graph_ = nullptr;
    ggml_tensor* result_ = nullptr;
};

static std::vector<float> read(std::ifstream& file, size_t count) {
    std::vector<float> values(count);
    if (!file.read(reinterpret_cast<char*>(values.data()), count * sizeof(float)))
        throw std::runtime_error("the data file is too short");
    return values;
}

// Scores, softmax and weighted values as three operations; values are kept transposed, as llama.cpp keeps them then.
static ggml_tensor* unfused(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, ggml_tensor* mask,
                            float scale) {
    ggml_tensor* scores = ggml_mul_mat(context, k, q);
    ggml_prec_set_acc(scores, GGML_PREC_F32);
    return ggml_mul_mat(context, v, ggml_soft_max_ext(context, scores, mask, scale, 0.0f));
}

static void build(Graph& graph, const Case& c, const std::string& line) {
    const bool flash = field(line, "route") == "flash_attn_ext";
    const ggml_type type = type_of(field(line, "dtype"));
    ggml_context* context = graph.context();
    ggml_tensor* q = ggml_new_tensor_4d(context, GGML_TYPE_F32, c.dim, c.q_len, c.q_heads, c.batch);
    ggml_tensor* k = ggml_new_tensor_4d(context, type, c.dim, c.kv_len, c.kv_heads, c.batch);
    ggml_tensor* v = flash ? ggml_new_tensor_4d(context, type, c.dim, c.kv_len, c.kv_heads, c.batch)
                           : ggml_new_tensor_4d(context, type, c.kv_len, c.dim, c.kv_heads, c.batch);
    ggml_tensor* mask = c.causal ? ggml_new_tensor_2d(context, GGML_TYPE_F16, c.kv_len, c.q_len) : nullptr;
    const float scale = 1.0f / std::sqrt(float(c.dim));
    if (flash) {
        ggml_tensor* out = ggml_flash_attn_ext(context, q, k, v, mask, scale, 0.0f, 0.0f);
        ggml_prec_set_acc(out, GGML_PREC_F32);
        graph.finish(out);
    } else
        graph.finish(unfused(context, q, k, v, mask, scale));

    std::ifstream file(field(line, "data"), std::ios::binary);
    fill(q, read(file, ggml_nelements(q)));
    fill(k, read(file, ggml_nelements(k)));
    const std::vector<float> values = read(file, ggml_nelements(v));
    fill(v, flash ? values : transposed(values, c.kv_len, c.dim));
    if (mask) {
        std::vector<float> allowed(ggml_nelements(mask));
        for (int row = 0; row < c.q_len; row++)
            for (int key = 0; key < c.kv_len; key++)
                allowed[size_t(row) * c.kv_len + key] = key <= row ? 0.0f : -INFINITY;
        fill(mask, allowed);
    }
}

// Into [batch, heads, queries, dim]: the fused operation puts heads behind queries.
static std::vector<float> head_major(const Case& c, const std::vector<float>& in, bool flash) {
    if (!flash) return in;
    std::vector<float> out(in.size());
    size_t from = 0;
    for (int b = 0; b < c.batch; b++)
        for (int row = 0; row < c.q_len; row++)
            for (int head = 0; head < c.q_heads; head++)
                for (int d = 0; d < c.dim; d++)
                    out[((size_t(b) * c.q_heads + head) * c.q_len + row) * c.dim + d] = in[from++];
    return out;
}

static double seconds(const Graph& graph) {
    const auto before = std::chrono::steady_clock::now();
    graph.run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
}

static std::vector<double> times(const Graph& graph, double secs) {
    graph.run();
    std::vector<double> found;
    double total = 0.0;
    while (found.size() < 2 || total < secs) {
        found.push_back(seconds(graph));
        total += found.back();
    }
    return found;
}

static std::vector<double> serve_case(ggml_backend_t backend, const std::string& line) {
    const Case c(field(line, "case"));
    Graph graph(backend);
    build(graph, c, line);
    const double first = seconds(graph);
    const std::vector<float> out = head_major(c, graph.output(), field(line, "route") == "flash_attn_ext");
    std::ofstream file(field(line, "out"), std::ios::binary);
    file.write(reinterpret_cast<const char*>(out.data()), out.size() * sizeof(float));
    return first > SLOW ? std::vector<double>{first} : times(graph, std::atof(field(line, "secs").c_str()));
}

static std::vector<double> serve_empty(ggml_backend_t backend, const std::string& line) {
    Graph graph(backend);
    ggml_tensor* x = ggml_new_tensor_1d(graph.context(), GGML_TYPE_F32, 1);
    graph.finish(ggml_neg(graph.context(), x));
    fill(x, {0.0f});
    return times(graph, std::atof(field(line, "secs").c_str()));
}

static void print(const std::vector<double>& times) {
    std::printf("@{\"times\": [");
    for (size_t i = 0; i < times.size(); i++) std::printf("%s%.9f", i ? ", " : "", times[i]);
    std::printf("]}\n");
}

int main() {
    const char* threads = std::getenv("OMP_NUM_THREADS");
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, threads ? std::atoi(threads) : 1);
    std::string line;
    while (std::getline(std::cin, line)) {
        try {
            if (line.find("\"hello\"") != std::string::npos)
                std::printf("@{\"version\": \"%s\", \"routes\": [\"flash_attn_ext\", \"mul_mat\"]}\n", ggml_version());
            else if (line.find("\"empty\"") != std::string::npos)
                print(serve_empty(backend, line));
            else
                print(serve_case(backend, line));
        } catch (const std::exception& error) {
            std::printf("@{\"error\": \"%s\"}\n", error.what());
        }
        std::fflush(stdout);
    }
    ggml_backend_free(backend);
}
