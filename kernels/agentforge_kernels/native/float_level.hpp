// All float kernels of one level. Included once for each level (plan_floats.hpp).

#include "float_lanes.hpp"
//
#include "float_attention.hpp"
#include "float_layers.hpp"

static const FloatKernels kernels = {norm_body,  dense_body,    rotate_body, attend_body,
                                     store_body, remember_body, blend_body,  activate_body};
