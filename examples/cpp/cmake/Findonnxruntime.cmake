# Finds ONNX Runtime in a folder of the release archive's layout (include/, lib/) or in the system's own places.
#
#   ONNXRUNTIME_ROOT         a CMake or environment variable: the folder
#   onnxruntime::onnxruntime the target to link

set(_places "${ONNXRUNTIME_ROOT}" "$ENV{ONNXRUNTIME_ROOT}")
# What was found for another folder is looked for again.
if(DEFINED onnxruntime_PLACES AND NOT onnxruntime_PLACES STREQUAL _places)
  unset(onnxruntime_INCLUDE_DIR CACHE)
  unset(onnxruntime_LIBRARY CACHE)
endif()
set(onnxruntime_PLACES "${_places}" CACHE INTERNAL "Where onnxruntime was looked for")
find_path(onnxruntime_INCLUDE_DIR onnxruntime_cxx_api.h
  HINTS ${_places} PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
find_library(onnxruntime_LIBRARY onnxruntime HINTS ${_places} PATH_SUFFIXES lib lib64)
unset(_places)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(onnxruntime
  REQUIRED_VARS onnxruntime_LIBRARY onnxruntime_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "unpack the release archive, or run examples/fetch_onnxruntime.py, and set ONNXRUNTIME_ROOT")

if(onnxruntime_FOUND AND NOT TARGET onnxruntime::onnxruntime)
  add_library(onnxruntime::onnxruntime UNKNOWN IMPORTED)
  set_target_properties(onnxruntime::onnxruntime PROPERTIES
    IMPORTED_LOCATION "${onnxruntime_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${onnxruntime_INCLUDE_DIR}")
endif()
mark_as_advanced(onnxruntime_INCLUDE_DIR onnxruntime_LIBRARY)
