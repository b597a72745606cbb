// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

// A server that has files and takes what it is sent, and a client that compares what it gets, with net/http: "serve ADDRESS",
// "ask URL".
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
	"time"
)

// How many clients there are at once, and for how long.
const (
	clients  = 4
	duration = 2 * time.Second
)

// content is the same on both sides.
func content(size int) []byte {
	lines := make([]byte, 0, size+20)
	for number := 0; len(lines) < size; number++ {
		lines = fmt.Appendln(lines, number)
	}
	return lines[:size]
}

func serve(address string) error {
	for _, size := range []int{1 << 10, 1 << 20} {
		if err := os.WriteFile(fmt.Sprint("/tmp/", size), content(size), 0o644); err != nil {
			return err
		}
	}
	// From a file: by sendfile().
	http.Handle("GET /", http.FileServer(http.Dir("/tmp")))
	http.HandleFunc("POST /", func(answer http.ResponseWriter, request *http.Request) {
		sum := sha256.New()
		if _, err := io.Copy(sum, request.Body); err != nil {
			http.Error(answer, err.Error(), http.StatusBadRequest)
			return
		}
		answer.Write(sum.Sum(nil))
	})
	return http.ListenAndServe(address, nil)
}

// ask has a request made by several clients, as often as they can, and tells how often that was in a second.
func ask(what string, request func() (*http.Response, error), expected []byte) error {
	var counts [clients]int
	var errors [clients]error
	var all sync.WaitGroup
	begun := time.Now()
	for client := range clients {
		all.Add(1)
		go func() {
			defer all.Done()
			for time.Since(begun) < duration && errors[client] == nil {
				errors[client] = once(request, expected)
				counts[client]++
			}
		}()
	}
	all.Wait()
	seconds := time.Since(begun).Seconds()
	sum := 0
	for client, count := range counts {
		if errors[client] != nil {
			return errors[client]
		}
		sum += count
	}
	fmt.Printf("figure %f requests/s %s\n", float64(sum)/seconds, what)
	return nil
}

func once(request func() (*http.Response, error), expected []byte) error {
	answer, err := request()
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && !bytes.Equal(body, expected) {
		err = fmt.Errorf("%s: %d bytes, not those that were expected", answer.Status, len(body))
	}
	return err
}

func askAll(url string) error {
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = clients
	for _, size := range []int{1 << 10, 1 << 20} {
		get := func() (*http.Response, error) { return http.Get(fmt.Sprint(url, "/", size)) }
		if err := ask(fmt.Sprintf("GET, %d KiB", size>>10), get, content(size)); err != nil {
			return err
		}
	}
	sent := content(1 << 20)
	sum := sha256.Sum256(sent)
	post := func() (*http.Response, error) { return http.Post(url, "text/plain", bytes.NewReader(sent)) }
	return ask("POST, 1024 KiB, of which the server makes a SHA-256", post, sum[:])
}

func main() {
	do := map[string]func(string) error{"serve": serve, "ask": askAll}[os.Args[1]]
	if err := do(os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
