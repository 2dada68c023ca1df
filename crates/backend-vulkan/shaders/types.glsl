// What all shaders share: extensions, pointers to buffers, and the two constants that every kernel has.
//
// Buffers are addresses in push constants; a pointer is cast to what lies there.

#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#pragma use_vulkan_memory_model

// Lanes of a subgroup, and invocations of a workgroup.
layout(constant_id = 0) const uint SUBGROUP = 32;
layout(constant_id = 1) const uint WORKGROUP = 256;
layout(local_size_x_id = 1) in;

layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Vec4s { vec4 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Uvec4s { uvec4 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Uvec2s { uvec2 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Vec2s { vec2 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Floats { float at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Uints { uint at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 2) buffer Halfs { float16_t at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 2) buffer Ushorts { uint16_t at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 1) buffer Bytes { uint8_t at[]; };
