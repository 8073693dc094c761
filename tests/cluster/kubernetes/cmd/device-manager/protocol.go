package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// request is a line of standard input. Which fields matter depends on the call:
//
//	start      pods: those whose containers ran on while the kubelet was away
//	ready      the pods that were on the node before have been admitted again
//	admit      pod: comes to the node
//	run        uid, container: what the runtime is told when the container starts
//	devices    uid, container: what the container was given
//	status     uid: the pod's status as far as devices are concerned
//	remove     uid: ended
//	capacity   what the node's status would say
type request struct {
	ID        uint64    `json:"id"`
	Call      string    `json:"call"`
	Pod       *v1.Pod   `json:"pod,omitempty"`
	Pods      []*v1.Pod `json:"pods,omitempty"`
	UID       types.UID `json:"uid,omitempty"`
	Container string    `json:"container,omitempty"`
}

// answer is a line of standard output: the result of the request with this ID, or why there is none.
type answer struct {
	ID     uint64 `json:"id"`
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// notice is a line of standard output that nobody asked for: the health of these pods' devices changed.
type notice struct {
	Changed []string `json:"changed"`
}

// lines writes whole lines, whoever of several goroutines they come from.
type lines struct {
	mutex   sync.Mutex
	encoder *json.Encoder
}

// write may fail only when the reader has gone, and then the input ends too.
func (l *lines) write(line any) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	_ = l.encoder.Encode(line)
}

// serve answers until the input ends. Each request is answered on its own, so that one that waits for a plugin holds up
// none that does not.
func serve(ctx context.Context, node *node, input io.Reader, output io.Writer) error {
	out := &lines{encoder: json.NewEncoder(output)}
	go func() {
		for change := range node.devices.Updates() {
			out.write(notice{Changed: change.PodUIDs})
		}
	}()
	in := bufio.NewReader(input)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return node.devices.Stop(node.logger)
		}
		if err != nil {
			return err
		}
		var asked request
		if err := json.Unmarshal(line, &asked); err != nil {
			return fmt.Errorf("request %q: %w", line, err)
		}
		go func() {
			result, err := node.call(ctx, &asked)
			if err != nil {
				out.write(answer{ID: asked.ID, Error: err.Error()})
				return
			}
			out.write(answer{ID: asked.ID, Result: result})
		}()
	}
}

func (n *node) call(ctx context.Context, asked *request) (any, error) {
	switch asked.Call {
	case "start":
		return struct{}{}, n.start(ctx, asked.Pods)
	case "ready":
		n.ready.Store(true)
		return struct{}{}, nil
	case "admit":
		return n.admit(ctx, asked.Pod)
	case "run":
		return n.run(ctx, asked.UID, asked.Container)
	case "devices":
		return n.devicesOf(asked.UID, asked.Container)
	case "status":
		return n.status(asked.UID)
	case "remove":
		return struct{}{}, n.remove(asked.UID)
	case "capacity":
		return n.capacity(), nil
	default:
		return nil, fmt.Errorf("call %q: allowed are start, ready, admit, run, devices, status, remove, capacity", asked.Call)
	}
}
