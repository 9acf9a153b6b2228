package data

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxPictureBytes bounds one picture file: 100 megapixels of 16-bit RGBA, uncompressed, fit in it.
const maxPictureBytes = 1 << 30

// Picture is one picture of a folder and what it shows.
type Picture struct {
	Name    string // file name relative to the folder, with forward slashes
	Caption string // never blank after ReadFolder; empty after ReadPictures
}

// Folder is a list of pictures on disk, sorted by file name. It holds names and captions; pixels are read on demand.
type Folder struct {
	Dir      string
	Pictures []Picture
}

// ReadFolder reads the captioned pictures of dir. Captions come from exactly one source: metadata.csv or metadata.jsonl
// (a column file_name and one of prompt, text, caption), or a file NAME.txt beside each picture NAME.png. Subfolders
// are searched only where metadata names files in them.
//
// It is an error if the folder is missing or has no pictures, if several sources of captions are present, if a picture
// has no caption or a blank one (there are no default captions), if a row names a missing picture or one named before, or
// if a file name leads out of the folder.
func ReadFolder(dir string) (*Folder, error) {
	l, err := list(dir)
	if err != nil {
		return nil, err
	}
	var sources []string
	for _, name := range []string{csvMetadata, jsonlMetadata} {
		if slices.Contains(l.others, name) {
			sources = append(sources, name)
		}
	}
	metadata := ""
	if len(sources) > 0 {
		metadata = sources[0]
	}
	for _, name := range l.pictures {
		if text := captionFile(name); slices.Contains(l.others, text) {
			sources = append(sources, text)
			break
		}
	}
	if len(sources) > 1 {
		return nil, fmt.Errorf("%s has captions in %s; keep one source of captions and move the others away", dir, strings.Join(sources, " and "))
	}
	if len(l.pictures) == 0 && metadata == "" {
		return nil, l.noPictures()
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be opened: %w", dir, err)
	}
	defer root.Close()
	var captions map[string]string
	if metadata != "" {
		captions, err = captionsFromMetadata(root, dir, metadata)
	} else {
		captions, err = captionsBeside(root, dir, l)
	}
	if err != nil {
		return nil, err
	}
	var without []string
	for _, name := range l.pictures {
		if _, ok := captions[name]; !ok {
			without = append(without, name)
		}
	}
	if len(without) > 0 {
		return nil, missingCaptions(dir, metadata, without)
	}
	if len(captions) == 0 {
		return nil, l.noPictures()
	}
	f := &Folder{Dir: dir}
	for name, caption := range captions {
		f.Pictures = append(f.Pictures, Picture{Name: name, Caption: caption})
	}
	slices.SortFunc(f.Pictures, func(a, b Picture) int { return strings.Compare(a.Name, b.Name) })
	return f, nil
}

// ReadPictures lists the pictures of dir and leaves captions aside: for detectors, and for DreamBooth instance pictures,
// which share one prompt (see [Folder.WithCaption]).
func ReadPictures(dir string) (*Folder, error) {
	l, err := list(dir)
	if err != nil {
		return nil, err
	}
	if len(l.pictures) == 0 {
		return nil, l.noPictures()
	}
	f := &Folder{Dir: dir}
	for _, name := range l.pictures {
		f.Pictures = append(f.Pictures, Picture{Name: name})
	}
	return f, nil
}

// WithCaption returns a copy of the folder in which every picture has the caption prompt. A blank prompt is an error.
func (f *Folder) WithCaption(prompt string) (*Folder, error) {
	prompt = strings.TrimSpace(prompt)
	if prompt == "" {
		return nil, fmt.Errorf("the prompt for the pictures of %s is blank; write what they show", f.Dir)
	}
	out := &Folder{Dir: f.Dir, Pictures: slices.Clone(f.Pictures)}
	for i := range out.Pictures {
		out.Pictures[i].Caption = prompt
	}
	return out, nil
}

// Len is the number of pictures.
func (f *Folder) Len() int { return len(f.Pictures) }

// Path is where picture i lies on disk.
func (f *Folder) Path(i int) string {
	return filepath.Join(f.Dir, filepath.FromSlash(f.Pictures[i].Name))
}

// Read returns the file of picture i as it is on disk.
func (f *Folder) Read(i int) ([]byte, error) {
	root, err := os.OpenRoot(f.Dir)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be opened: %w", f.Dir, err)
	}
	defer root.Close()
	return readIn(root, f.Dir, f.Pictures[i].Name, maxPictureBytes)
}

// Decode reads and decodes picture i.
func (f *Folder) Decode(i int) (*RGB, error) {
	file, err := f.Read(i)
	if err != nil {
		return nil, err
	}
	return Decode(f.Path(i), file)
}

// Size is the size of picture i as it is looked at, upright, told from its header.
func (f *Folder) Size(i int) (Size, error) {
	file, err := f.Read(i)
	if err != nil {
		return Size{}, err
	}
	_, size, err := readHeader(f.Path(i), file)
	if orientation(file) >= 5 { // on its side
		size.Width, size.Height = size.Height, size.Width
	}
	return size, err
}

// ContentHash is the SHA-256 of the file of picture i: a name for its content in a [Key] that survives renaming.
func (f *Folder) ContentHash(i int) ([sha256.Size]byte, error) {
	file, err := f.Read(i)
	return sha256.Sum256(file), err
}

// Check reads the header of every picture, so that a run does not stop at a bad one hours later: it reports files that are
// not PNG, JPEG or WebP and pictures over [MaxPixels], up to ten of them. A truncated picture shows only when decoded.
func (f *Folder) Check() error {
	var problems []error
	for i := range f.Pictures {
		file, err := f.Read(i)
		if err == nil {
			_, err = decodeHeader(f.Path(i), file)
		}
		if err != nil {
			if problems = append(problems, err); len(problems) == 10 {
				break
			}
		}
	}
	return errors.Join(problems...)
}

// listing is what a folder holds at its top level, sorted by name.
type listing struct {
	dir              string
	pictures, others []string
	subfolders       int
}

func (l *listing) noPictures() error {
	hint := "put PNG, JPEG or WebP files there"
	if l.subfolders > 0 {
		hint += "; its subfolders are not searched"
	}
	return fmt.Errorf("%s has no pictures; %s", l.dir, hint)
}

// list sorts the entries of dir into pictures and other files. A picture in a format that cannot be read is an error:
// training silently on the rest would not be what the user asked for.
func list(dir string) (*listing, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the picture folder %s does not exist; check its name", dir)
	case err != nil:
		return nil, fmt.Errorf("the picture folder %s cannot be opened: %w", dir, err)
	case !info.IsDir():
		return nil, fmt.Errorf("%s is not a folder; name the folder that holds the pictures", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("the picture folder %s cannot be listed: %w", dir, err)
	}
	l := &listing{dir: dir}
	for _, e := range entries {
		switch name := e.Name(); {
		case e.IsDir():
			l.subfolders++
		case strings.HasPrefix(name, "."): // such as ._a.png, which macOS writes beside a.png
		default:
			switch strings.ToLower(filepath.Ext(name)) {
			case ".png", ".jpg", ".jpeg", ".webp":
				l.pictures = append(l.pictures, name)
			case ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jp2":
				return nil, fmt.Errorf("%s is in a format that cannot be read; convert it to PNG, JPEG or WebP, or move it away", filepath.Join(dir, name))
			default:
				l.others = append(l.others, name)
			}
		}
	}
	return l, nil
}

// statIn looks a file up inside root. Names and links that lead out of the folder are refused, and so is anything but a
// regular file: opening a pipe would wait for ever.
func statIn(root *os.Root, dir, name string) (fs.FileInfo, error) {
	path := filepath.Join(dir, name)
	info, err := root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist: %w", path, fs.ErrNotExist)
	case err != nil && strings.Contains(err.Error(), "escapes"):
		return nil, fmt.Errorf("%s is a symbolic link out of the folder; copy the file into the folder", path)
	case err != nil:
		return nil, fmt.Errorf("%s cannot be read: %w", path, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file; replace it by one", path)
	}
	return info, nil
}

// readIn reads a whole file inside root, of at most limit bytes.
func readIn(root *os.Root, dir, name string, limit int64) ([]byte, error) {
	info, err := statIn(root, dir, name)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than the %d allowed; split or shrink it", path, info.Size(), limit)
	}
	file, err := root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be opened: %w", path, err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, err)
	}
	return content, nil
}
