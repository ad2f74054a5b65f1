"""The options that each execution provider knows, as ONNX Runtime documents them: a misspelt one is refused by name.

Providers differ in what they do with a name that they do not know: some refuse it, QNN takes it in silence.
Source: https://onnxruntime.ai/docs/execution-providers, and onnxruntime_c_api.h of 1.32.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from monograph.errors import ConfigError

_TENSORRT = (
    "device_id", "user_compute_stream", "has_user_compute_stream", "trt_max_partition_iterations", "trt_min_subgraph_size",
    "trt_max_workspace_size", "trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable", "trt_int8_calibration_table_name",
    "trt_int8_use_native_calibration_table", "trt_dla_enable", "trt_dla_core", "trt_engine_cache_enable",
    "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_weight_stripped_engine_enable", "trt_dump_subgraphs",
    "trt_force_sequential_engine_build", "trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback",
    "trt_timing_cache_enable", "trt_timing_cache_path", "trt_force_timing_cache", "trt_detailed_build_log",
    "trt_build_heuristics_enable", "trt_sparsity_enable", "trt_builder_optimization_level", "trt_auxiliary_streams",
    "trt_tactic_sources", "trt_extra_plugin_lib_paths", "trt_profile_min_shapes", "trt_profile_max_shapes",
    "trt_profile_opt_shapes", "trt_cuda_graph_enable", "trt_dump_ep_context_model", "trt_ep_context_file_path",
    "trt_ep_context_embed_mode", "trt_engine_hw_compatible", "trt_onnx_bytestream", "trt_onnx_bytestream_size",
    "trt_op_types_to_exclude", "trt_preview_features",
)  # fmt: skip
KNOWN_OPTIONS: Mapping[str, frozenset[str]] = {
    "CPUExecutionProvider": frozenset({"use_arena"}),
    "CUDAExecutionProvider": frozenset(
        {
            "device_id", "user_compute_stream", "has_user_compute_stream", "do_copy_in_default_stream",
            "use_ep_level_unified_stream", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search",
            "cudnn_conv_use_max_workspace", "cudnn_conv1d_pad_to_nc1d", "enable_cuda_graph",
            "enable_skip_layer_norm_strict_mode", "use_tf32", "gpu_external_alloc", "gpu_external_free",
            "gpu_external_empty_cache", "prefer_nhwc", "tunable_op_enable", "tunable_op_tuning_enable",
            "tunable_op_max_tuning_duration_ms", "fuse_conv_bias", "sdpa_kernel",
        }
    ),
    "TensorrtExecutionProvider": frozenset(_TENSORRT),
    "QNNExecutionProvider": frozenset(
        {
            "backend_type", "backend_path", "profiling_level", "profiling_file_path", "rpc_control_latency", "vtcm_mb",
            "htp_performance_mode", "qnn_saver_path", "qnn_context_priority", "htp_graph_finalization_optimization_mode",
            "soc_model", "htp_arch", "device_id", "enable_htp_fp16_precision", "offload_graph_io_quantization",
            "enable_htp_spill_fill_buffer", "enable_htp_shared_memory_allocator", "dump_json_qnn_graph",
            "json_qnn_graph_dir", "op_packages", "htp_bf16_enable", "enable_vtcm_backup_buffer_sharing", "extended_udma",
            "skip_qnn_version_check", "enable_htp_extended_udma_mode", "dump_qnn_ir_dlc", "dump_qnn_ir_dlc_dir",
            "qnn_ir_backend_path",
        }
    ),
    "CoreMLExecutionProvider": frozenset(
        {
            "ModelFormat", "MLComputeUnits", "RequireStaticInputShapes", "EnableOnSubgraphs", "SpecializationStrategy",
            "ProfileComputePlan", "AllowLowPrecisionAccumulationOnGPU", "ModelCacheDirectory",
        }
    ),
    "XnnpackExecutionProvider": frozenset({"intra_op_num_threads"}),
    "NnapiExecutionProvider": frozenset(),
    "WebGpuExecutionProvider": frozenset(
        {
            "preferredLayout", "enableGraphCapture", "enablePIXCapture", "enableInt64", "storageBufferCacheMode",
            "uniformBufferCacheMode", "queryResolveBufferCacheMode", "defaultBufferCacheMode", "validationMode",
            "forceCpuNodeNames", "deviceId", "webgpuInstance", "webgpuDevice", "dawnProcTable", "dawnBackendType",
            "powerPreference", "preserveDevice", "multiRotaryCacheConcatOffset",
        }
    ),
}  # fmt: skip
"""Providers that are not listed are taken at their word."""


def check_options(provider: str, options: Mapping[str, str]) -> None:
    """Refuse options that ``provider`` does not know.

    Raises:
        ConfigError: the first of them, with the nearest name that there is.
    """
    known = KNOWN_OPTIONS.get(provider)
    if known is None:
        return
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known))}"
            raise ConfigError(f"{provider} has no option {name!r}: {hint}")
