# Finds the headers of cudnn-frontend (MIT licence), with which cuDNN's attention is described: MT_CUDNN_FRONTEND_INCLUDE, empty
# if there are none; the CUDA backend then has its own attention only. deploy/install-deps.sh fetches them where nvcc is present,
# to build/third_party/cudnn_frontend/include.
#
# 1.18 is of the time of cuDNN 9.19. From 1.19 on the headers want NVRTC at link time.
find_path(MT_CUDNN_FRONTEND_INCLUDE cudnn_frontend.h
  HINTS ${PROJECT_SOURCE_DIR}/build/third_party/cudnn_frontend/include ${CUDAToolkit_INCLUDE_DIRS}
  DOC "Folder of cudnn_frontend.h")
if(MT_CUDNN_FRONTEND_INCLUDE)
  file(STRINGS ${MT_CUDNN_FRONTEND_INCLUDE}/cudnn_frontend_version.h version REGEX "define CUDNN_FRONTEND_(MAJOR|MINOR)_VERSION")
  string(REGEX REPLACE "[^0-9;]" "" version "${version}")
  string(REPLACE ";" "." version "${version}")
  if(NOT version VERSION_EQUAL 1.18)
    message(WARNING "cudnn-frontend ${version} in ${MT_CUDNN_FRONTEND_INCLUDE}: 1.18 is what was tried")
  endif()
  message(STATUS "CUDA backend: cuDNN attention through cudnn-frontend ${version}")
else()
  set(MT_CUDNN_FRONTEND_INCLUDE "")
  message(STATUS "CUDA backend: no cuDNN attention, only our own: no cudnn_frontend.h (deploy/install-deps.sh fetches it; "
    "MT_CUDNN_FRONTEND_INCLUDE names its folder)")
endif()
