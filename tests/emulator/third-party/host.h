// What the suites' programs have in common: cases by number, random operands, a check against exact sums.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda_runtime.h>

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        printf("%s: %s\n", what, cudaGetErrorString(status));
        exit(1);
    }
}
#define CHECK(call) check(call, #call)

// Random numbers of one kind or the other: integers, whose sums are exact, or fractions.
struct Draw {
    std::mt19937 random;
    bool integers;
    int most = 4;

    double operator()() {
        if (integers) return int(random() % (2 * most + 1)) - most;
        return std::uniform_real_distribution<double>(-1, 1)(random);
    }
};

// An array on the host and on the device. What is not drawn is left unwritten there.
template <class T>
struct Array {
    std::vector<T> host;
    T* device = nullptr;

    explicit Array(size_t n) : host(n) { CHECK(cudaMalloc(&device, bytes() ? bytes() : 1)); }
    Array(const Array&) = delete;
    ~Array() { cudaFree(device); }

    size_t bytes() const { return host.size() * sizeof(T); }
    void draw(Draw& draw) {
        for (T& x : host) x = T(float(draw()));
        up();
    }
    void up() { CHECK(cudaMemcpy(device, host.data(), bytes(), cudaMemcpyHostToDevice)); }
    void down() { CHECK(cudaMemcpy(host.data(), device, bytes(), cudaMemcpyDeviceToHost)); }
};

// How far a result may be from the exact one.
struct Bound {
    double worst = 0;  // the largest error in units of what is allowed
    long at = -1;
    double got = 0, wanted = 0;

    void add(long index, double value, double exact, double allowed) {
        const double error = std::abs(value - exact);
        const double units = error == 0 ? 0 : error / allowed;
        if (!(units <= worst)) worst = std::isnan(units) ? INFINITY : units, at = index, got = value, wanted = exact;
    }
    bool holds(const char* what) const {
        if (worst <= 1) return true;
        printf("%s: element %ld is %.9g, not %.9g: %.3g times what rounding may do\n", what, at, got, wanted, worst);
        return false;
    }
};

struct Case {
    std::string name;
    bool (*run)(bool integers, unsigned seed);
};

// list: the cases' names. N SEED: runs a case, on integers and on fractions; 0 where both come out.
inline int run_cases(const std::vector<Case>& cases, int argc, char** argv) {
    if (argc == 2 && !strcmp(argv[1], "list")) {
        for (const Case& one : cases) printf("%s\n", one.name.c_str());
        return 0;
    }
    const size_t number = argc == 3 ? strtoul(argv[1], nullptr, 10) : cases.size();
    if (number >= cases.size()) {
        fprintf(stderr, "usage: %s list | NUMBER SEED\n", argv[0]);
        return 2;
    }
    const unsigned seed = strtoul(argv[2], nullptr, 10);
    return cases[number].run(true, seed) && cases[number].run(false, seed) ? 0 : 1;
}
