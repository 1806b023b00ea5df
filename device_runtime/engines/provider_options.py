"""The option names that ONNX Runtime's providers and llama.cpp accept, so that a typo is found before a device is.

ONNX Runtime itself cannot be asked: it knows the options only of the providers it was built with, and ignores those
of others. These tables were read from the strings of the wheels onnxruntime-gpu 1.31.1 (Linux), onnxruntime 1.32.0 (macOS),
onnxruntime-openvino 1.24.1 (Linux) and onnxruntime-qnn 2.7.0 (Windows on ARM), without the options that take pointers.
"""

from __future__ import annotations

from collections.abc import Mapping

from prunella.device_runtime.base.suggestions import did_you_mean
from prunella.device_runtime.bundle import OptionValue
from prunella.device_runtime.engines.providers import CPU


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CUDA = _names(
    """
    arena_extend_strategy cudnn_conv1d_pad_to_nc1d cudnn_conv_algo_search cudnn_conv_use_max_workspace device_id
    do_copy_in_default_stream enable_cuda_graph enable_skip_layer_norm_strict_mode fuse_conv_bias gpu_mem_limit
    prefer_nhwc sdpa_kernel tunable_op_enable tunable_op_max_tuning_duration_ms tunable_op_tuning_enable
    use_ep_level_unified_stream use_tf32
    """
)
_TENSORRT = _names(
    """
    device_id trt_auxiliary_streams trt_bf16_enable trt_build_heuristics_enable trt_builder_optimization_level
    trt_context_memory_sharing_enable trt_cuda_graph_enable trt_detailed_build_log trt_dla_core trt_dla_enable
    trt_dump_ep_context_model trt_dump_subgraphs trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix
    trt_engine_decryption_enable trt_engine_decryption_lib_path trt_engine_hw_compatible trt_ep_context_embed_mode
    trt_ep_context_file_path trt_extra_plugin_lib_paths trt_force_sequential_engine_build trt_force_timing_cache
    trt_fp16_enable trt_int8_calibration_table_name trt_int8_enable trt_int8_use_native_calibration_table
    trt_layer_norm_fp32_fallback trt_load_user_initializer trt_max_partition_iterations trt_max_workspace_size
    trt_min_subgraph_size trt_onnx_model_folder_path trt_op_types_to_exclude trt_preview_features
    trt_profile_max_shapes trt_profile_min_shapes trt_profile_opt_shapes trt_sparsity_enable trt_tactic_sources
    trt_timing_cache_enable trt_timing_cache_path trt_weight_stripped_engine_enable
    """
)
_COREML = _names(
    """
    AllowLowPrecisionAccumulationOnGPU EnableOnSubgraphs MLComputeUnits ModelCacheDirectory ModelFormat
    ProfileComputePlan RequireStaticInputShapes SpecializationStrategy
    """
)
_OPENVINO = _names(
    """
    cache_dir device_id device_luid device_type disable_dynamic_shapes enable_causallm enable_opencl_throttling
    enable_qdq_optimizer layout load_config model_priority num_of_threads num_streams precision reshape_input
    """
)
_QNN = _names(
    """
    backend_path backend_type device_id disable_file_mapped_weights dump_json_qnn_graph enable_htp_fp16_precision
    enable_htp_shared_memory_allocator enable_htp_spill_fill_buffer enable_vtcm_backup_buffer_sharing extended_udma htp_arch
    htp_graph_finalization_optimization_mode htp_performance_mode json_qnn_graph_dir num_graph_prepare_threads
    offload_graph_io_quantization op_packages profiling_file_path profiling_level qnn_context_priority qnn_saver_path
    rpc_control_latency skip_qnn_version_check soc_model vtcm_mb
    """
)
PROVIDER_OPTIONS: dict[str, frozenset[str]] = {
    "CUDAExecutionProvider": _CUDA,
    "TensorrtExecutionProvider": _TENSORRT,
    "CoreMLExecutionProvider": _COREML,
    "OpenVINOExecutionProvider": _OPENVINO,
    "QNNExecutionProvider": _QNN,
    CPU: frozenset(),
}
# Where an option takes one of a few words.
OPTION_VALUES: dict[str, tuple[str, ...]] = {
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv_algo_search": ("DEFAULT", "HEURISTIC", "EXHAUSTIVE"),
    "MLComputeUnits": ("ALL", "CPUAndNeuralEngine", "CPUAndGPU", "CPUOnly"),
    "ModelFormat": ("MLProgram", "NeuralNetwork"),
    "SpecializationStrategy": ("Default", "FastPrediction"),
    "backend_type": ("cpu", "gpu", "htp", "saver", "ir"),
    "htp_performance_mode": (
        "default",
        "burst",
        "balanced",
        "high_performance",
        "high_power_saver",
        "low_power_saver",
        "low_balanced",
        "power_saver",
        "extreme_power_saver",
        "sustained_high_performance",
    ),
    "htp_graph_finalization_optimization_mode": ("0", "1", "2", "3"),
}
# Fields of llama.cpp's parameter structures that llama-cpp-python binds and a target may set.
LLAMA_MODEL_OPTIONS: dict[str, type] = {
    "n_gpu_layers": int,
    "main_gpu": int,
    "split_mode": int,
    "use_extra_bufts": bool,
    "no_host": bool,
}
LLAMA_CONTEXT_OPTIONS: dict[str, type] = {"offload_kqv": bool, "op_offload": bool, "flash_attn_type": int}
LLAMA_OPTIONS = LLAMA_MODEL_OPTIONS | LLAMA_CONTEXT_OPTIONS


def check_provider(name: str) -> str | None:
    """What is wrong with the name of an execution provider, or None."""
    return None if name in PROVIDER_OPTIONS else f"is {name!r}: {_choice(name, PROVIDER_OPTIONS)}"


def check_provider_option(provider: str, key: str, value: object) -> str | None:
    """What is wrong with one option of a provider that `check_provider` found no fault with, or None."""
    known = PROVIDER_OPTIONS[provider]
    if key not in known:
        hint = _choice(key, known) if known else "it takes none"
        return f"is no option of {provider}: {hint}"
    if not isinstance(value, str | int | float):
        return f"must be a string, a number, true or false, is {value!r}"
    words = OPTION_VALUES.get(key)
    if words and value not in words:
        return f"is {value!r}: choose among {', '.join(words)}"
    return None


def check_llama_option(key: str, value: object) -> str | None:
    """What is wrong with one setting of llama.cpp, or None."""
    if key not in LLAMA_OPTIONS:
        return f"is no setting of llama.cpp that a target may make: {_choice(key, LLAMA_OPTIONS)}"
    kind = LLAMA_OPTIONS[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return f"must be {'true or false' if kind is bool else 'a whole number'}, is {value!r}"
    return None


def split_llama_options(
    options: Mapping[str, OptionValue],
) -> tuple[dict[str, OptionValue], dict[str, OptionValue]]:
    """Settings of the model, and settings of the context."""
    return (
        {key: value for key, value in options.items() if key in LLAMA_MODEL_OPTIONS},
        {key: value for key, value in options.items() if key in LLAMA_CONTEXT_OPTIONS},
    )


def _choice(name: str, known: Mapping[str, object] | frozenset[str]) -> str:
    return did_you_mean(name, known) or f"choose among {', '.join(sorted(known))}"
