// Package svd takes matrices of weights apart into singular values and vectors, in float64.
//
// The products of large matrices run on the engine; what lies between them is written here. The eigenvectors of the Gram
// matrix A·Aᵀ (Householder's reduction, then implicit QR steps) turn the rows of A into rows that are orthogonal but for
// the squared condition number, and Jacobi rotations of those pairs that are not (Hestenes 1958) make them so. The shorter
// side of the matrix decides the cost.
package svd
