// runc-unfiltered is the runc beside it for containers whose system calls nobody filters.
//
// A kubelet asks for a filter for the first container of every pod. runc filters by libseccomp, a C library that would have
// to be installed; built without, it refuses such containers. So the filter is taken out of what a container is to be.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "runc-unfiltered: %v\n", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if at := slices.Index(arguments, "--bundle"); at >= 0 && at+1 < len(arguments) {
		if err := unfilter(filepath.Join(arguments[at+1], "config.json")); err != nil {
			return err
		}
	}
	own, err := os.Executable()
	if err != nil {
		return err
	}
	runc := filepath.Join(filepath.Dir(own), "runc")
	return fmt.Errorf("%s: %w", runc, syscall.Exec(runc, append([]string{runc}, arguments[1:]...), os.Environ()))
}

// unfilter removes linux.seccomp from a container's configuration (OCI runtime specification, config-linux), and leaves
// everything else as it is.
func unfilter(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config, linux map[string]json.RawMessage
	if err := json.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := json.Unmarshal(config["linux"], &linux); err != nil {
		return fmt.Errorf("%s: linux: %w", path, err)
	}
	delete(linux, "seccomp")
	if config["linux"], err = json.Marshal(linux); err != nil {
		return err
	}
	if text, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}
