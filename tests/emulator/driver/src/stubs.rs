//! What the safe layer of cudarc can call and this driver does not have: each says so, and returns its library's "not supported".

use crate::device::unsupported;

macro_rules! stubs {
    ($code:literal: $($name:ident)*) => {$(
        /// Not supported.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> u32 {
            unsupported(stringify!($name));
            $code
        }
    )*};
}

// CUDA_ERROR_NOT_SUPPORTED
stubs! { 801:
    cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig cuCtxGetLimit cuCtxGetStreamPriorityRange
    cuCtxSetCacheConfig cuCtxSetFlags cuCtxSetLimit cuDestroyExternalMemory cuDeviceGetDefaultMemPool
    cuDeviceGetMemPool cuDeviceSetMemPool cuExternalMemoryGetMappedBuffer cuImportExternalMemory cuLaunchHostFunc
    cuMemAdvise_v2 cuMemAllocFromPoolAsync cuMemAllocManaged cuMemPoolCreate cuMemPoolDestroy cuMemPoolGetAttribute
    cuMemPoolSetAttribute cuMemPoolTrimTo cuMemPrefetchAsync_v2 cuMemcpyPeerAsync
    cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveClusters cuOccupancyMaxPotentialBlockSize
    cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyMaxPotentialClusterSize cuProfilerStart cuProfilerStop
    cuStreamAttachMemAsync
}

// CUBLAS_STATUS_NOT_SUPPORTED
stubs! { 15:
    cublasDasum_v2 cublasDgemv_v2 cublasGemmGroupedBatchedEx cublasLtCreate cublasLtDestroy cublasLtLoggerOpenFile
    cublasLtLoggerSetLevel cublasLtMatmul cublasLtMatmulAlgoGetHeuristic cublasLtMatmulDescCreate
    cublasLtMatmulDescDestroy cublasLtMatmulDescSetAttribute cublasLtMatmulPreferenceCreate
    cublasLtMatmulPreferenceDestroy cublasLtMatmulPreferenceSetAttribute cublasLtMatrixLayoutCreate
    cublasLtMatrixLayoutDestroy cublasLtMatrixLayoutSetAttribute cublasSasum_v2 cublasSgemv_v2
}

// CURAND_STATUS_INTERNAL_ERROR
stubs! { 999:
    curandGenerate curandGenerateLogNormal curandGenerateLogNormalDouble curandGenerateLongLong curandGeneratePoisson
    curandSetGeneratorOffset
}

// NVRTC_ERROR_INTERNAL_ERROR
stubs! { 11:
    nvrtcCompileProgram nvrtcCreateProgram nvrtcDestroyProgram nvrtcGetPTX nvrtcGetPTXSize nvrtcGetProgramLog
    nvrtcGetProgramLogSize
}
