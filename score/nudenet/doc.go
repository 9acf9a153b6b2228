// Package nudenet finds nude and covered parts of bodies in pictures, with the networks of NudeNet version 3 (YOLOv8 in
// sizes n and m, called 320n and 640m).
//
// Everything around the network is as the public package nudenet 3.4.2 has it, peculiarities included: the network sees
// blue, green and red where one would expect red, green and blue, pictures are enlarged or shrunk as OpenCV does to the
// byte, overlapping boxes suppress each other whatever they are labelled, and boxes end at whole pixels.
//
// The weights are licensed under the AGPL-3.0 and not part of this program. They are read from an .onnx file, from the wheel
// of the public package, or from the folder that it was installed into.
package nudenet
