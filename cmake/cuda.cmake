# Finds nvcc, and makes of it what FASTRNN_CUDA asks for: AUTO (what there is a compiler for), ON, OFF. Sets
# FASTRNN_HAVE_CUDA; with it there are the language CUDA and fastrnn_cudart.
set(FASTRNN_CUDA
    AUTO
    CACHE STRING "Build the CUDA module: AUTO (if nvcc is found), ON or OFF")
set_property(CACHE FASTRNN_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT FASTRNN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FASTRNN_CUDA is '${FASTRNN_CUDA}'; expected AUTO, ON or OFF")
endif()

set(FASTRNN_HAVE_CUDA OFF)
if(FASTRNN_CUDA STREQUAL OFF)
  return()
endif()

# Ends this file: an error if CUDA was asked for by name.
macro(without_cuda reason)
  if(FASTRNN_CUDA STREQUAL ON)
    message(FATAL_ERROR "FASTRNN_CUDA=ON, but ${reason}; FASTRNN_CUDA=AUTO builds without")
  endif()
  message(STATUS "CUDA: ${reason}; built without")
  return()
endmacro()

# nvcc of the wheels nvidia-cuda-nvcc and its siblings, in the environment of the Python that builds. When pip builds in
# isolation, sys.path has only what it installed for that; the environment's own folder is still where sysconfig says.
set(wheel_bins "")
find_package(Python 3 QUIET COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)
if(Python_EXECUTABLE)
  execute_process(
    COMMAND
      "${Python_EXECUTABLE}" -c
      "import glob, sys, sysconfig; folders = dict.fromkeys([*sys.path, sysconfig.get_path('purelib')]); \
print(*(f for p in folders for f in glob.glob(p + '/nvidia/cu1*/bin')), sep=';')"
    OUTPUT_VARIABLE wheel_bins
    OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
# CUDACXX, as CMake itself has it, may be a path or a name with flags; it comes first.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(
    FASTRNN_NVCC nvcc
    HINTS ENV CUDA_PATH ENV CUDA_HOME
    PATH_SUFFIXES bin
    PATHS ${wheel_bins} /usr/local/cuda/bin)
  if(NOT FASTRNN_NVCC)
    without_cuda("there is no nvcc on PATH, in CUDACXX, among the wheels of this Python (pip install --group cuda), or in \
/usr/local/cuda")
  endif()
  set(ENV{CUDACXX} "${FASTRNN_NVCC}")
endif()

# Two generations of hardware, and code that later ones can translate. make wheel-cuda names those of a release.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
endif()
# The wheels have lib where nvcc's profile says lib64: for CMake's trial of the compiler.
if("${CMAKE_CUDA_COMPILER}$ENV{CUDACXX}" MATCHES "^(.*/nvidia/cu1[0-9])/bin/nvcc$")
  set(ENV{NVCC_APPEND_FLAGS} "-L${CMAKE_MATCH_1}/lib")
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  without_cuda("$ENV{CUDACXX} does not compile, by itself or with this C++ compiler")
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  without_cuda("${CMAKE_CUDA_COMPILER} is version ${CMAKE_CUDA_COMPILER_VERSION}; 12.8 or later is needed")
endif()
# FindCUDAToolkit would want a shared cudart too, which the wheels have under its versioned name alone.
find_library(FASTRNN_CUDART cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
add_library(fastrnn_cudart INTERFACE)
target_include_directories(fastrnn_cudart SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(fastrnn_cudart INTERFACE ${FASTRNN_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)
set(FASTRNN_HAVE_CUDA ON)
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, for ${CMAKE_CUDA_ARCHITECTURES}")
