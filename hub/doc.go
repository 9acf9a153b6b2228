// Package hub brings models and data sets from the Hugging Face hub into the cache that huggingface_hub shares among
// programs, and finds those that are there.
//
// Either is named owner/name, or owner/name@revision with a branch, tag or commit. Its files lie in the cache as Python
// programs put them there:
//
//	models--owner--name/
//	  blobs/HASH                      the content of a file: SHA-256 of large files, Git's SHA-1 of small ones
//	  blobs/HASH.incomplete           one that is still being downloaded
//	  refs/main                       the commit that a branch or tag stood for when it was downloaded
//	  snapshots/COMMIT/unet/config.json -> ../../../../blobs/HASH
//	.locks/models--owner--name/HASH.lock
//
// and those of a data set below datasets--owner--name, so that either finds what the other downloaded. Only the files that
// this program reads are fetched. Nothing is printed.
package hub
