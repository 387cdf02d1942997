# Builds liblunce.so and the program into $(BUILD) and leaves ./lunce; runs everything that has to
# be run. Holds no list of sources (they are found) and no shell longer than a few lines (.ci/ has
# those). Invariant: an object is newer than every header and .def file it includes, and than this
# file. `make help` lists the targets; CC, OPT, CFLAGS, LDFLAGS, BUILD, PREFIX, DESTDIR, LUAJIT (the
# prefix of another LuaJIT), NVCC (empty: build without CUDA), CUDA_ARCH and CXX may be set.
VERSION := 0.1.0
ifeq ($(origin CC),default)
CC := gcc
endif
BUILD ?= build
PREFIX ?= /usr/local
OPT ?= -O3 -g
WARN := -Wall -Wextra -Wshadow -Wmissing-prototypes -Werror
# No code asks errno or the exception flags what arithmetic met, so that loops vectorise.
CFLAGS_ALL = -std=gnu11 $(OPT) $(WARN) -fno-math-errno -fno-trapping-math -fPIC -fopenmp \
  -fvisibility=hidden -Iruntime $(CFLAGS)

ifdef LUAJIT
LUAJIT_CFLAGS := -I$(LUAJIT)/include/luajit-2.1
LUAJIT_LIBS := -L$(LUAJIT)/lib -lluajit-5.1 -Wl,-rpath,$(LUAJIT)/lib
else
LUAJIT_CFLAGS := $(shell pkg-config --cflags luajit 2>/dev/null)
LUAJIT_LIBS := $(shell pkg-config --libs luajit 2>/dev/null)
endif

# The files of cpu/ are compiled once for each instruction set, cpu.c (which chooses) only once.
ISAS := baseline avx2 avx512
MARCH_baseline := -march=x86-64
MARCH_avx2 := -march=x86-64-v3 -mtune=skylake
MARCH_avx512 := -march=x86-64-v4 -mprefer-vector-width=512

# What Lua reads of the library, laid out by hand.
ABI := $(wildcard runtime/ln*.h)

PROGRAM := runtime/main.c runtime/repl.c
CORE := $(filter-out $(PROGRAM),$(wildcard runtime/*.c runtime/ops/*.c runtime/data/*.c))
KERNELS := $(filter-out runtime/cpu/cpu.c,$(wildcard runtime/cpu/*.c))
# Those of cpu/similarity/ once more for each element type.
TYPED := $(wildcard runtime/cpu/similarity/*.c)
LIBRARY_OBJS := $(CORE:%.c=$(BUILD)/%.o) $(BUILD)/runtime/cpu/cpu.o \
  $(foreach isa,$(ISAS),$(KERNELS:%.c=$(BUILD)/%.$(isa).o) \
    $(foreach type,float double,$(TYPED:%.c=$(BUILD)/%.$(type).$(isa).o)))
PROGRAM_OBJS := $(PROGRAM:%.c=$(BUILD)/%.o)

# The CUDA backend, where there is nvcc: machine code for these architectures, and PTX of the last.
NVCC ?= $(shell command -v nvcc)
CUDA_ARCH ?= 80 90
CUDA_LIBRARY := $(if $(NVCC),$(BUILD)/liblunce_cuda.so)
CUDA_OBJS := $(patsubst %.cu,$(BUILD)/%.o,$(wildcard runtime/cuda/*.cu))

all: library program $(CUDA_LIBRARY) ## build the library and the program, and leave ./lunce
library: $(BUILD)/liblunce.so
program: $(BUILD)/lunce lunce

# Old-style run paths also serve what our shared objects load in turn: `make dist` needs that.
RPATH := -Wl,--disable-new-dtags,-rpath,

# With -z defs, a backend that leaves an operator out does not link; with nodelete, a Lua state that
# closes does not pull the code from under OpenMP's threads, and oneDNN's memory stays reachable.
$(BUILD)/liblunce.so: $(LIBRARY_OBJS)
	$(CC) -shared -fopenmp $(CFLAGS) $(LDFLAGS) -Wl,-z,defs,-z,nodelete $(RPATH)'$$ORIGIN' \
	  -Wl,-soname,liblunce.so -o $@ $^ -ldnnl -lz -lm -ldl -lpthread

$(BUILD)/lunce: $(PROGRAM_OBJS)
	$(CC) $(CFLAGS) $(LDFLAGS) $(RPATH)'$$ORIGIN/lib' -o $@ $^ $(LUAJIT_LIBS) -ledit -lpthread

lunce: $(BUILD)/lunce
	ln -sf $< $@

$(PROGRAM_OBJS): CFLAGS_ALL += $(LUAJIT_CFLAGS) -DLUNCE_VERSION='"$(VERSION)"'

define ISA_RULE
$(BUILD)/%.$(1).o: %.c Makefile
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS_ALL) $$(MARCH_$(1)) -DLN_ISA=$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach isa,$(ISAS),$(eval $(call ISA_RULE,$(isa))))

define TYPE_RULE
$(BUILD)/%.$(1).$(2).o: %.c Makefile
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS_ALL) $$(MARCH_$(2)) -DLN_ISA=$(2) -DLN_REAL=$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach isa,$(ISAS),$(foreach type,float double,$(eval $(call TYPE_RULE,$(type),$(isa)))))

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

# It needs no C++ library: what kernels' stubs set up once may be set up twice. random.cu and
# augment.cu must not fuse multiply and add: their bits are to be the CPU's.
CUDA_HOME = $(patsubst %/bin/nvcc,%,$(shell command -v $(NVCC)))
comma := ,
WARN_CUDA = $(subst $() $(),$(comma),$(filter-out -Wmissing-prototypes,$(WARN)))
NVCCFLAGS_ALL = -std=c++17 -O3 -lineinfo -Werror all-warnings -Iruntime \
  -I$(BUILD)/include \
  -Xcompiler -fPIC,-fvisibility=hidden,-fno-exceptions,-fno-threadsafe-statics,$(WARN_CUDA) \
  $(foreach a,$(CUDA_ARCH),-gencode=arch=compute_$(a),code=sm_$(a)) \
  -gencode=arch=compute_$(lastword $(CUDA_ARCH)),code=compute_$(lastword $(CUDA_ARCH)) $(NVCCFLAGS)
$(addprefix $(BUILD)/runtime/cuda/,random.o augment.o): NVCCFLAGS_ALL += -fmad=false

# The text of kernels that are compiled at run time, as string literals.
KERNEL_TEXTS = $(patsubst %,$(BUILD)/include/cuda/%.text,epilogue mma special fused_epilogue)
$(KERNEL_TEXTS): $(BUILD)/include/cuda/%.text: runtime/cuda/%.h Makefile
	@mkdir -p $(@D)
	sed 's/[\\"]/\\&/g; s/.*/"&\\n"/' $< >$@
$(BUILD)/runtime/cuda/source.o: $(KERNEL_TEXTS)

$(BUILD)/%.o: %.cu Makefile
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS_ALL) -MMD -MP -c -o $@ $<

$(BUILD)/liblunce_cuda.so: $(CUDA_OBJS) $(BUILD)/liblunce.so
	$(CC) -shared $(LDFLAGS) -Wl,-z,defs,-z,nodelete,--exclude-libs,ALL \
	  $(RPATH)'$$ORIGIN':$(CUDA_HOME)/lib64 -o $@ $(CUDA_OBJS) -L$(BUILD) -llunce \
	  -L$(CUDA_HOME)/lib64 -lcudart_static -lcublasLt -lnvrtc -lm -ldl -lrt -lpthread

# The same sources for the host: kernels as fibres, products by the CPU backend; see
# tests/cuda-host/. Its tests need no GPU.
CXX ?= g++
SHIM ?= $(BUILD)/tests
HOST_OBJS := $(patsubst %.cu,$(SHIM)/%.o,\
  $(filter-out %/products.cu %/compile.cu,$(wildcard runtime/cuda/*.cu))) \
  $(patsubst tests/cuda-host/%.cc,$(SHIM)/cuda-host/%.o,\
  $(filter-out %check.cc %/nvrtc.cc %/cudnn.cc,\
  $(wildcard tests/cuda-host/*.cc)))
$(SHIM)/runtime/cuda/source.o: $(KERNEL_TEXTS)
WARN_HOST = $(filter-out -Wmissing-prototypes,$(WARN))
HOST_PARTS = -DLN_PART_ROWS=16 -DLN_PART_COLUMNS=32
HOST_LIMITS = -DLN_MOST_BLOCKS=3 -DLN_SCRATCH_BYTES=40000 -DLN_TILE_EXTENT=72 \
  -DLN_FUSED_EXTENT=200 -DLN_LIST_BYTES=4096 -DLN_FUSED_BLOCKS=2 -DLN_FUSED_PARTS=2600 $(HOST_PARTS)
CXXFLAGS_HOST = -std=c++17 -O2 -g -fPIC -fvisibility=hidden -ffp-contract=off \
  $(HOST_LIMITS) $(WARN_HOST) -Itests/cuda-host -Iruntime -Iruntime/cuda \
  -I$(BUILD)/include
$(SHIM)/cuda-host/compile.o: CXXFLAGS_HOST += \
  -DCUDA_HOST_CXX='"$(CXX) $(HOST_PARTS) -I$(CURDIR)/tests/cuda-host"'
$(SHIM)/cuda-host/ptx%.o: CXXFLAGS_HOST += -O3
$(SHIM)/cuda-host/ptx_nvrtc.o: CXXFLAGS_HOST += \
  -DCUDA_HOST_NVRTC='"$(if $(NVCC),$(CUDA_HOME)/lib64/)libnvrtc.so"' \
  -DCUDA_HOST_PARTS='$(subst $() $(),$(comma),$(HOST_PARTS:%="%"))'

$(SHIM)/%.o: %.cu Makefile
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS_HOST) -MMD -MP -x c++ -c -o $@ $<

$(SHIM)/cuda-host/%.o: tests/cuda-host/%.cc Makefile
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS_HOST) -MMD -MP -c -o $@ $<

$(SHIM)/liblunce_cuda.so: $(HOST_OBJS) $(BUILD)/liblunce.so
	$(CXX) -shared $(LDFLAGS) -Wl,-z,defs,-z,nodelete $(RPATH)'$$ORIGIN:$$ORIGIN/..' -o $@ \
	  $(HOST_OBJS) -L$(BUILD) -llunce -ldl -lpthread

# The same kernels as PTX, which the shim interprets where it is asked to; made only when named.
PTX_FILES = $(patsubst runtime/cuda/%.cu,$(SHIM)/ptx/%.ptx,\
  $(shell grep -l __global__ runtime/cuda/*.cu))
$(addprefix $(SHIM)/ptx/,random.ptx augment.ptx): FMAD_PTX = -fmad=false
$(SHIM)/ptx/%.ptx: runtime/cuda/%.cu Makefile
	@mkdir -p $(@D)
	$(NVCC) -ptx -arch=compute_90 -std=c++17 -O3 -lineinfo $(FMAD_PTX) $(HOST_LIMITS) -Iruntime \
	  -I$(BUILD)/include -MMD -MP -o $@ $<

# What the shim finds as cuDNN.
$(SHIM)/libcudnn.so.9: $(SHIM)/cuda-host/cudnn.o $(SHIM)/liblunce_cuda.so
	$(CXX) -shared $(LDFLAGS) -Wl,-z,defs $(RPATH)'$$ORIGIN:$$ORIGIN/..' -o $@ $< \
	  -L$(SHIM) -llunce_cuda -L$(BUILD) -llunce

$(SHIM)/cuda-host/cudnn_check.o: CXXFLAGS_HOST = -std=c++17 $(WARN_HOST) -Iruntime/cuda \
  $(if $(NVCC),-I$(CUDA_HOME)/include)

# What a launch needs: fibres and the interpreter.
RUNNING = $(patsubst %,$(SHIM)/cuda-host/%.o,threads memory streams graphs mma ptx_decode \
  ptx_entries ptx_floats ptx_integers ptx_lanes ptx_memory ptx_parse ptx_round ptx_run ptx_shadow \
  ptx_warp)
$(SHIM)/cuda-host-check: $(SHIM)/cuda-host/check.o $(RUNNING) $(BUILD)/liblunce.so
	$(CXX) $(LDFLAGS) $(RPATH)'$$ORIGIN/..' -o $@ $(filter %.o,$^) -L$(BUILD) -llunce -ldl -lpthread

$(SHIM)/ptx-check: $(SHIM)/cuda-host/ptx_check.o $(RUNNING) $(BUILD)/liblunce.so
	$(CXX) $(LDFLAGS) $(RPATH)'$$ORIGIN/..' -o $@ $(filter %.o,$^) -L$(BUILD) -llunce -ldl -lpthread

# Compiles for devices what the host runs; needs no GPU, but NVRTC.
$(SHIM)/nvrtc: tests/cuda-host/nvrtc.cc Makefile
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O1 $(WARN_HOST) -I$(CUDA_HOME)/include -o $@ $< -L$(CUDA_HOME)/lib64 -lnvrtc \
	  -Wl,-rpath,$(CUDA_HOME)/lib64

cuda-host: $(SHIM)/liblunce_cuda.so $(SHIM)/cuda-host-check $(SHIM)/ptx-check \
  $(SHIM)/libcudnn.so.9 $(SHIM)/cuda-host/cudnn_check.o \
  $(if $(NVCC),$(SHIM)/nvrtc)

-include $(LIBRARY_OBJS:.o=.d) $(PROGRAM_OBJS:.o=.d) $(CUDA_OBJS:.o=.d) $(HOST_OBJS:.o=.d) \
  $(wildcard $(SHIM)/cuda-host/*.d $(SHIM)/ptx/*.d)

# The set-up may bring what the variables above ask for, so make starts anew after it.
demo: deps ## set up, build, then train on the shipped digits (DEVICE=cuda: on a GPU)
	@$(MAKE) --no-print-directory all
	./lunce scripts/demo.lua $(if $(DEVICE),--device=$(DEVICE))

test: deps ## set up, build, then run every test (DEVICE=cuda: those of operators, on a GPU)
	@$(MAKE) --no-print-directory all cuda-host
	DEVICE=$(DEVICE) ./lunce tests/run.lua

deps: ## install the Debian packages that are missing
	@.ci/deps

check: ## check the format, the lint and the rules of the source
	@.ci/check

format: ## lay out the C files
	clang-format -i $(filter-out $(ABI),$(wildcard $(addsuffix .[ch],runtime/* runtime/*/* \
	  runtime/*/*/*) runtime/cuda/*.cu tests/cuda-host/*.h tests/cuda-host/*.cc))

# Sanitizers: the library and the program are built once more, and what runs under them names both.
sanitized = $(MAKE) --no-print-directory BUILD=build/$(1) OPT='-O1 -g -fno-omit-frame-pointer' \
  CFLAGS='$(2)' library build/$(1)/lunce
under = LUNCE_LIBRARY=$(CURDIR)/build/$(1)/liblunce.so LUNCE_PROGRAM=build/$(1)/lunce

# Leaks are left to the tests, which count bytes, and to valgrind: Lua's heap, which holds the
# handles, is unknown to malloc, so that an exit which does not close it looks like one leak.
ASAN = ASAN_OPTIONS=detect_leaks=0 LUNCE_TEST_SECONDS=3000 $(call under,asan) build/asan/lunce

asan-build:
	+$(call sanitized,asan,-fsanitize=address -fsanitize=undefined -fno-sanitize-recover=undefined)

asan: asan-build ## run the tests under AddressSanitizer and UBSan, with the JIT on and off
	$(ASAN) tests/run.lua
	$(ASAN) -e 'jit.off()' tests/run.lua

# Each test of what is compiled at run time; those of no halves compile many links. And of the other
# kernels; tensors of 32 MB are too many elements to interpret.
PTX_TESTS = tile_random epilogue mirror tile_rank tile_dtype similarity topk link family loss fused
PTX_TESTS += joined ops nn optim random augment eval graph captured autograd tensor channels_last
ptx-files: $(PTX_FILES)

ptx: all cuda-host ptx-files ## run kernels as PTX that the host interprets; needs no GPU
	DEVICE=cuda LUNCE_CUDA=$(CURDIR)/$(BUILD)/tests/liblunce_cuda.so LUNCE_CUDA_HOST_PTX=1 \
	  LUNCE_TEST_SECONDS=3000 ./lunce tests/run.lua --filter-out='32 MB' \
	  $(PTX_TESTS:%=tests/%_test.lua)

sanitize-cuda: all ## run a reduced table of tests under compute-sanitizer, on a GPU
	./lunce tests/sanitize.lua

fuzz: asan-build ## damage files at random and read them under the same sanitizers
	$(ASAN) tests/fuzz/readers.lua

# OpenMP's barriers are not instrumented and would look like races: kernels get a team of one, and
# what is examined is the loader's threads against the program's.
tsan: ## run the loader's tests under ThreadSanitizer
	+$(call sanitized,tsan,-fsanitize=thread)
	OMP_NUM_THREADS=1 $(call under,tsan) build/tsan/lunce --threads=1 tests/run.lua \
	  tests/loader_test.lua

bench: all ## measure, beside PyTorch where it is installed (DEVICE=cuda: on a GPU)
	DEVICE=$(DEVICE) ./lunce tests/bench/run.lua

# A matrix that the host could not go through: what is asked of the device is counted, not done.
memory-cuda: all ## count a device's memory for a million rows, without a GPU
	@$(MAKE) --no-print-directory SHIM=build/limits HOST_LIMITS= HOST_PARTS= \
	  build/limits/liblunce_cuda.so
	LUNCE_CUDA=build/limits/liblunce_cuda.so LUNCE_CUDA_HOST_DRY=1 \
	  LUNCE_CUDA_HOST_BYTES=8000000000 ./lunce tests/bench/scale.lua --device=cuda --counted

stress: all ## run the memory campaigns in full, and under valgrind
	./lunce tests/stress/run.lua

install: all ## install into PREFIX (and DESTDIR)
	install -D $(BUILD)/lunce $(DESTDIR)$(PREFIX)/bin/lunce
	for library in $(BUILD)/liblunce.so $(CUDA_LIBRARY); do \
	  install -Dm 644 $$library $(DESTDIR)$(PREFIX)/lib/$${library##*/}; done
	install -m 644 -t $(DESTDIR)$(PREFIX)/share/lunce -D $(ABI)
	cp -R lualib scripts $(DESTDIR)$(PREFIX)/share/lunce/

dist: all ## make a folder and a tarball that run without packages
	.ci/dist lunce-$(VERSION) $(BUILD)

clean: ## remove what was built
	rm -rf build lunce

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: all library program cuda-host demo test deps check format asan-build asan sanitize-cuda \
  ptx ptx-files fuzz tsan bench memory-cuda stress install dist clean help
