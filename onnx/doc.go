// Package onnx reads neural networks from ONNX files and computes them on the engine.
//
// The reader takes the protobuf encoding apart by itself. Every length in the file is held against what the file has, so a
// damaged or hostile file is an error and costs no more memory than its size justifies. Weights that lie in other files are
// read from the folder of the model only. What a network may make of its inputs is bounded as well, by their size and its own.
//
// [Compile] turns the graph into a program of package engine. What depends on shapes alone is computed on the host while
// the program is built. Pictures are kept with their channels last, where the Go backend multiplies matrices fastest;
// transposes are carried along and done only where an operator needs another order.
//
// The operators are those of image classifiers and of detectors of the YOLO family; [Operators] lists them. They compute
// in float32. Numbers in half precision are widened.
package onnx
