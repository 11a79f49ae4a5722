// A ring that tumbles, with bands around it.
float solid(vec3 q) {
    return length(vec2(length(q.xz) - 0.8, q.y)) - between(0, 0.15, 0.4);
}

void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at);
    mat2 a = turn(0.8 * iTime + TAU * random(1)), b = turn(0.5 * iTime + TAU * random(2));
    vec3 eye = vec3(0, 0, -3), ray = normalize(vec3(p, between(3, 1.8, 2.8)));
    eye.yz = a * eye.yz; ray.yz = a * ray.yz;
    eye.xy = b * eye.xy; ray.xy = b * ray.xy;
    float far = 0.0, step_ = 1.0;
    for (int k = 0; k < 32 && step_ > 0.005 && far < 6.0; k++) {
        step_ = solid(eye + ray * far);
        far += step_;
    }
    vec3 hit = eye + ray * far, ring = vec3(normalize(hit.xz) * 0.8, 0.0).xzy;
    vec3 normal = normalize(hit - ring);
    float around = atan(hit.z, hit.x), across = atan(hit.y, length(hit.xz) - 0.8);
    float band = sin(around * float(count(4, 2, 7)) + across * float(count(5, 0, 3)));
    vec3 own = mix(ink(6), ink(7), smoothstep(-0.3, 0.3, band));
    float bright = 0.25 + 0.9 * max(dot(normal, -ray), 0.0);
    vec3 ground = mix(ink(8), palette(length(p)), random(9));
    colour = vec4(far < 6.0 ? own * bright : ground, 1);
}
